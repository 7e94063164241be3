package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// sameAsGoTOML holds tomlTree beside toml.Unmarshal: the same tree or the same first
// mistake at the same place. It tells whether data was whole.
func sameAsGoTOML(t *testing.T, data []byte) bool {
	t.Helper()
	var want map[string]any
	wantErr := toml.Unmarshal(bytes.Clone(data), &want)
	got, gotErr := tomlTree(bytes.Clone(data))
	if wantErr == nil {
		if gotErr != nil {
			t.Fatalf("%q: refused at %v with %q; go-toml takes it", data, gotErr.at, gotErr.problem)
		}
		if g, w := spellTree(new(strings.Builder), got), spellTree(new(strings.Builder), want); g != w {
			t.Fatalf("%q:\n got %s\nwant %s", data, g, w)
		}
		return true
	}
	var de *toml.DecodeError
	if !errors.As(wantErr, &de) {
		t.Fatalf("%q: go-toml has an error without a place: %v", data, wantErr)
	}
	if gotErr == nil {
		t.Fatalf("%q: taken; go-toml says %v", data, wantErr)
	}
	line, column := de.Position()
	want2 := &tomlError{
		at: configPosition{Line: line, Column: column}, key: de.Key(),
		problem: strings.TrimPrefix(de.Error(), "toml: "),
	}
	if !reflect.DeepEqual(gotErr, want2) {
		t.Fatalf("%q:\n got %+v\nwant %+v", data, *gotErr, *want2)
	}
	return false
}

// spellTree writes a tree with the kind of every value. Dates and times are one
// kind, and NaN is the same as NaN.
func spellTree(b *strings.Builder, v any) string {
	switch v := v.(type) {
	case map[string]any:
		b.WriteString("{")
		for _, key := range slices.Sorted(maps.Keys(v)) {
			fmt.Fprintf(b, "%q:", key)
			spellTree(b, v[key])
		}
		b.WriteString("}")
	case []any:
		b.WriteString("[")
		for _, value := range v {
			spellTree(b, value)
		}
		b.WriteString("]")
	case string, bool, int64, float64:
		fmt.Fprintf(b, "%T %#v,", v, v)
	default:
		fmt.Fprintf(b, "moment %v,", v)
	}
	return b.String()
}

// tomlSamples have each rule at least once, kept and broken.
var tomlSamples = []string{
	"", "\n\r\n# only a comment", "a = 1 # one\nb.c = 2\nb.d = 3\n", "[a]\nb = 1\n[a.c]\n[d]\n[a.e.f]\n[a.e]\n",
	"[[a]]\nb = 1\n[a.c]\nx = 1\n[[a]]\n[a.c]\nx = 2\n[[a.d]]\n[[a.d]]\nb.c = 1\n",
	"a = [1, [2, 'x'], {b = 1, c.d = 2, c.e = [{}]}]\n", "a = { b = { c = 1 }, d = [ ] }\n",
	"a = 1\na = 2\n", "a.b = 1\na = 2\n", "a = 1\na.b = 2\n", "a = 1\n[a]\n", "a = 1\n[a.b]\n", "a = 1\n[[a]]\n",
	"[a]\n[a]\n", "[a]\n[[a]]\n", "[[a]]\n[a]\n", "a.b = 1\n[a]\n", "a.b = 1\n[a.c]\n", "a.b = 1\n[[a.c]]\n", "a.b = 1\n[[a]]\n",
	"[a.b]\nc = 1\n[a]\nb.d = 2\n", "[a]\nb.c = 1\n[a.b]\n", "[a]\nb.c = 1\n[a.b.d]\ne = 1\n[a.b.d]\n", "[a]\n[a.b]\n[a]\n",
	"a = {b = 1, b = 2}\n", "a = {b.c = 1, b = 2}\n", "a = {b = 1, b.c = 2}\n", "a = [{b = 1, b = 2}]\n", "a = [[{b = 1}, {b = 1}]]\n",
	"a = {b = {}}\na.b.c = 1\n", "a = {b = {}}\n[a.b]\n", "a = []\n[[a]]\n", "[[a.b]]\n[a]\nb = 1\n", "[[a]]\nb = 1\nb = 2\n",
	"a = {b = 1, c = [99999999999999999999, 1], c = 2}\n", "'a b'.\"c\\n\" = 1\n'a b'.d.e = 2\n['a b'.x]\n",
	"i = [0, +1, -1_000, 9223372036854775807, -9223372036854775808, 0x7fff_ffff_ffff_ffff, 0o777, 0b1]\n",
	"i = 9223372036854775808\n", "i = -9223372036854775809\n", "i = 0x8000000000000000\n", "i = 0o1000000000000000000000\n",
	"i = 0b" + strings.Repeat("1", 64) + "\n", "i = 01\n", "i = 1__0\n", "i = 0x\n", "i = +0x1\n",
	"f = [1.5, -0.0, 1e10, 1_0.0_1E-3, inf, +inf, -inf, nan, +nan, -nan, 5e-324, 0.1]\n", "f = 1e999\n", "f = -1_0e9_99\n", "f = 1.\n",
	"b = [true, false]\n", "b = tru\n", "s = 'x", "s = \"\"\"a\nb\"\"\"\n", "s = \"\\q\"\n", "s = \"\\u00e9\\U0001F600\\e\\x41\"\n", "s =", "s = \n", "s", "= 1", "[", "[a", "[a]b", "[[a]", "a = [", "a = {", "a = [1 2]", "a = {b = 1,}", "a = 1 b = 2", "\xff = 1", "a = \"\xff\"", "a\x00",
	"d = 2020-02-29\n", "d = 2021-02-29\n", "d = 2021-13-01\n", "d = 2021-00-01\n", "d = 2021-04-31\n", "d = 2021-04-00\n", "d = 2021-4-1\n", "d = 1900-02-29\n", "d = 2000-02-29\n", "d = 0000-01-01\n", "d = 2021-0:-01\n", "d = 2021-01-0Z\n", "d = 2021-01-01Z\n", "d = 2021-01-011\n", "d = [2021-01-01, 2020-01-01T00:00:00.5]\n",
	"t = 07:32\n", "t = 07:32:10\n", "t = 07:32:10.5\n", "t = 07:32:10.1234567891\n", "t = 07:32:10.\n", "t = 24:00\n", "t = 07:60\n", "t = 07:32:60\n", "t = 07:3\n", "t = 07:32:1\n", "t = 07:32:\n", "t = 07:32Z\n", "t = 07:32.5\n", "t = 07:-2\n", "t = 07:32:10.5.5\n", "t = 07:32:10.x\n", "t = 07:32:10.Z\n",
	"l = 2020-01-01T07:32\n", "l = 2020-01-01 07:32:10\n", "l = 2020-01-01t07:32:10.25\n", "l = 2020-01-01T\n", "l = 2020-01-01T", "l = 2020-01-01T07\n", "l = 2020-13-01T07:32\n", "l = 2020-01-01T07:32:10.5.\n", "l = 2020-01-01.07:32T\n", "l = 2020-01T07:32:10\n", "l = 2020-01-0107:32T\n",
	"z = 2020-01-01T07:32Z\n", "z = 2020-01-01T07:32:10z\n", "z = 2020-01-01 07:32:10.5+01:00\n", "z = 2020-01-01T07:32:10-00:00\n", "z = 2020-01-01T07:32:10-05:30\n", "z = 2020-01-01T07:32:10+24:00\n", "z = 2020-01-01T07:32:10+01:60\n", "z = 2020-01-01T07:32:10+0100\n", "z = 2020-01-01T07:32:10+01-00\n", "z = 2020-01-01T07:32:10+1:000\n", "z = 2020-01-01T07:32:10ZZ\n", "z = 2020-01-01T07:32:10:01:0Z\n", "z = 2020-01-01T07:32:10Z1\n", "z = 2020-01-01T0Z:32\n", "z = 2020-01-01T07:3Z\n", "z = 2020-01-01T07:32:1Z\n", "z = 2020-02-30T07:32:10Z\n", "z = 2020-01-01T07:32:10.Z\n", "z = 2020-01-01TZ\n", "z = 2020-01-01T07:32:10.12345678912Z\n", "z = 9999-12-31T23:59:59+23:59\n",
}

func TestTOMLTree(t *testing.T) {
	whole := 0
	for _, s := range tomlSamples {
		if sameAsGoTOML(t, []byte(s)) {
			whole++
		}
	}
	if broken := len(tomlSamples) - whole; whole < 30 || broken < 80 {
		t.Errorf("%d samples are whole and %d broken: too few of one kind to show anything", whole, broken)
	}
	// Deep nesting is refused by the parser and must not be walked into.
	for _, depth := range []int{10, 1000, 10001} {
		sameAsGoTOML(t, []byte("a = "+strings.Repeat("[", depth)+strings.Repeat("]", depth)))
		sameAsGoTOML(t, []byte("a = "+strings.Repeat("{b=", depth)+"1"+strings.Repeat("}", depth)))
	}
}

func FuzzTOMLTree(f *testing.F) {
	for _, s := range tomlSamples {
		f.Add([]byte(s))
	}
	files, err := filepath.Glob("testdata/config/*.toml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { sameAsGoTOML(t, data) })
}
