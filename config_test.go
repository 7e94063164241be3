package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding"
	"encoding/pem"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

// expectedMark starts the lines at the end of a testdata file that say, without the
// file's name, exactly what is to be found wrong with it.
const expectedMark = "#! "

func TestConfigFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/config/*.toml")
	if err != nil || len(files) < 10 {
		t.Fatalf("testdata/config: %d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for line := range strings.Lines(string(data)) {
				if text, ok := strings.CutPrefix(line, expectedMark); ok {
					want = append(want, file+":"+strings.TrimSuffix(text, "\n"))
				}
			}
			if good := strings.HasPrefix(filepath.Base(file), "good-"); good != (len(want) == 0) {
				t.Fatalf("%d expected errors do not go with the name", len(want))
			}
			cfg, err := loadConfig(file)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if (cfg == nil) != (err != nil) {
				t.Errorf("loadConfig = %v with error %v", cfg, err)
			}
			if want := strings.Join(want, "\n"); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestConfigDefaults(t *testing.T) {
	want := defaultConfig()
	for _, file := range []string{"good-empty.toml", "good-full.toml", "good-empty-section.toml"} {
		got, err := loadConfig(filepath.Join("testdata/config", file))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(emptyAsNil(got), emptyAsNil(want)) {
			t.Errorf("%s = %+v; want %+v", file, got, want)
		}
	}
	// A change to one must not reach the next: a reload starts from the defaults again.
	want.Listen.Control[0] = "changed"
	if got := defaultConfig().Listen.Control[0]; got != "[::]:2121" {
		t.Errorf("defaultConfig shares its lists: %q", got)
	}
}

// emptyAsNil makes "[]" in the file and no list in defaultConfig compare as equal.
func emptyAsNil(c *config) config {
	d := *c
	for _, l := range []*[]network{&d.Filter.AllowFrom, &d.Filter.DenyFrom} {
		if len(*l) == 0 {
			*l = nil
		}
	}
	for _, l := range []*[]string{&d.Exec.Read, &d.Exec.Write} {
		if len(*l) == 0 {
			*l = nil
		}
	}
	return d
}

// TestConfigFullNamesEveryKey keeps good-full.toml, and with it the test of the
// defaults, complete when a key is added.
func TestConfigFullNamesEveryKey(t *testing.T) {
	data, err := os.ReadFile("testdata/config/good-full.toml")
	if err != nil {
		t.Fatal(err)
	}
	at := positionsOf(data)
	for _, section := range tomlFields(reflect.TypeFor[config]()) {
		if section.Type.Kind() != reflect.Struct {
			continue
		}
		for _, f := range tomlFields(section.Type) {
			key := tomlName(section) + "." + tomlName(f)
			if _, ok := at[key]; !ok && key != "passive.for" && key != "profiles.for" {
				t.Errorf("%s is not in good-full.toml", key)
			}
		}
	}
}

func TestConfigUnusualValues(t *testing.T) {
	c, err := loadConfig("testdata/config/good-unusual.toml")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Passive.Ports; got != (portRange{}) {
		t.Errorf("ports = %v; want any", got)
	}
	if got := c.Passive.For[1].Network.String(); got != "2001:db8::/32" {
		t.Errorf("passive.for[1].network = %q", got)
	}
	if got := c.Filter.AllowFrom[0].String(); got != "192.0.2.0/24" {
		t.Errorf("mapped prefix = %q; want 192.0.2.0/24", got)
	}
	if len(c.Listen.Datagram) != 0 || len(c.Listen.Local) != 0 {
		t.Errorf("an empty list did not replace the default: %q %q", c.Listen.Datagram, c.Listen.Local)
	}
	if got := c.Commands["snap"].Timeout.std(); got != 30*time.Second {
		t.Errorf("commands.snap.timeout = %v", got)
	}
}

func TestConfigFileErrors(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large.toml")
	if err := os.WriteFile(large, bytes.Repeat([]byte("#\n"), maxConfigFile), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing.toml")
	for _, tt := range []struct{ path, want string }{
		{missing, missing + ": no such file; create it (an empty file is valid) or correct --config FILE"},
		{dir, dir + ": is a directory; name a readable file with --config FILE"},
		{large, large + ": longer than 256KiB; name a readable file with --config FILE"},
	} {
		if _, err := loadConfig(tt.path); err == nil || err.Error() != tt.want {
			t.Errorf("loadConfig(%q) = %v; want %s", tt.path, err, tt.want)
		}
	}
	if _, err := os.Stat(defaultConfigPath); os.IsNotExist(err) {
		_, err := loadConfig(defaultConfigPath)
		if err == nil || !strings.Contains(err.Error(), "berth demo") {
			t.Errorf("missing default file: %v; want the ways out", err)
		}
	}
}

func TestConfigCertificates(t *testing.T) {
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		var data []byte
		if der != nil {
			data = pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pair := func(name string) (certificate, key string) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
		cert, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return write(name+".crt", "CERTIFICATE", cert), write(name+".key", "PRIVATE KEY", der)
	}
	certA, keyA := pair("a")
	_, keyB := pair("b")
	empty := write("empty", "", nil)
	for _, tt := range []struct{ name, in, want string }{
		{"pair", fmt.Sprintf("certificate = %q\nkey = %q\nclient_ca = %q\n", certA, keyA, certA), ""},
		{"wrong key", fmt.Sprintf("certificate = %q\nkey = %q\n", certA, keyB), "f:2: tls.certificate: .* cannot be used together: private key does not match"},
		{"no certificate in it", fmt.Sprintf("certificate = %q\nkey = %q\n", empty, keyA), "f:2: tls.certificate: .* cannot be used together: "},
		{"no key", fmt.Sprintf("certificate = %q\n", certA), "f:2: tls.key: missing beside tls.certificate; "},
		{"no certificate", fmt.Sprintf("key = %q\n", keyA), "f:2: tls.certificate: missing beside tls.key; "},
		{"misspelt key", fmt.Sprintf("certificate = %q\nkye = %q\n", certA, keyA), `f:3: tls.kye: unknown key; did you mean "key"\?`},
		{"empty CA", fmt.Sprintf("client_ca = %q\n", empty), "f:2: tls.client_ca: .* has no PEM certificate"},
	} {
		_, errs := parseConfig("f", []byte("[tls]\n"+tt.in))
		got := errs.Error()
		if tt.want == "" && got != "" || len(errs) > 1 || !regexp.MustCompile("^"+tt.want).MatchString(got) {
			t.Errorf("%s: got %q; want %s", tt.name, got, tt.want)
		}
	}
}

func TestConfigScalars(t *testing.T) {
	const bad = "error"
	dur := func() encoding.TextUnmarshaler { return new(duration) }
	size := func() encoding.TextUnmarshaler { return new(byteSize) }
	netw := func() encoding.TextUnmarshaler { return new(network) }
	ports := func() encoding.TextUnmarshaler { return new(portRange) }
	for _, tt := range []struct {
		make     func() encoding.TextUnmarshaler
		in, want string // want: what String then says
	}{
		{dur, "0", "0"},
		{dur, "0s", "0"},
		{dur, "1ns", "1ns"},
		{dur, "30s", "30s"},
		{dur, "90s", "1m30s"},
		{dur, "5m", "5m"},
		{dur, "1h", "1h"},
		{dur, "1h0m5s", "1h0m5s"},
		{dur, "1.5h", "1h30m"},
		{dur, "24h", "24h"},
		{dur, "1d", "24h"},
		{dur, "30d", "30d"},
		{dur, "1d12h", "36h"},
		{dur, "106751d", "106751d"},
		{dur, "2562047h47m16.854775807s", "2562047h47m16.854775807s"}, // 2^63-1 ns
		{dur, "106751d23h47m16.854775807s", "2562047h47m16.854775807s"},
		{dur, "106751d23h47m16.854775808s", bad},
		{dur, "2562047h47m16.854775808s", bad},
		{dur, "106752d", bad},
		{dur, "99999999999999999999d", bad},
		{dur, "", bad},
		{dur, "5", bad},
		{dur, "-1", bad},
		{dur, "-5m", bad},
		{dur, "+5m", bad},
		{dur, ".5h", bad},
		{dur, "1.5d", bad},
		{dur, "1d-1h", bad},
		{dur, "5 m", bad},
		{dur, "5M", bad},
		{dur, "d", bad},

		{size, "0", "0"},
		{size, "1", "1B"},
		{size, "5", "5B"},
		{size, "512B", "512B"},
		{size, "1000", "1000B"},
		{size, "1024", "1KiB"},
		{size, "10MiB", "10MiB"},
		{size, "1536MiB", "1536MiB"},
		{size, "2048MiB", "2GiB"},
		{size, "1kB", "1000B"},
		{size, "1024kB", "1000KiB"},
		{size, "3TB", "2929687500KiB"},
		{size, "1TiB", "1TiB"},
		{size, "8388607TiB", "8388607TiB"},
		{size, "8388608TiB", bad},
		{size, "9223372036854775807", "9223372036854775807B"},
		{size, "9223372036854775808", bad},
		{size, "9223372036854775808B", bad},
		{size, "-1", bad},
		{size, "+1", bad},
		{size, "", bad},
		{size, "MiB", bad},
		{size, "1.5GiB", bad},
		{size, "10 MiB", bad},
		{size, "10M", bad},
		{size, "10mib", bad},
		{size, "10KB", bad},
		{size, "0x10", bad},

		{netw, "10.0.0.0/8", "10.0.0.0/8"},
		{netw, "192.0.2.7", "192.0.2.7"},
		{netw, "192.0.2.7/32", "192.0.2.7"},
		{netw, "0.0.0.0/0", "0.0.0.0/0"},
		{netw, "2001:db8::/32", "2001:db8::/32"},
		{netw, "2001:DB8::1", "2001:db8::1"},
		{netw, "::ffff:192.0.2.7", "192.0.2.7"},
		{netw, "::ffff:10.0.0.0/104", "10.0.0.0/8"},
		{netw, "::ffff:0.0.0.0/95", bad},
		{netw, "", bad},
		{netw, "*", bad},
		{netw, "10.0.0.0/", bad},
		{netw, "10.0.0.0/-1", bad},
		{netw, "10.0.0.0/33", bad},
		{netw, "10.0.0.1/8", bad},
		{netw, "10.0.0", bad},
		{netw, "010.0.0.1", bad},
		{netw, "fe80::1%eth0", bad},
		{netw, "10.0.0.0/255.0.0.0", bad},

		{ports, "", ""},
		{ports, "50000", "50000"},
		{ports, "50000-50000", "50000"},
		{ports, "50000-50999", "50000-50999"},
		{ports, "1024-65535", "1024-65535"},
		{ports, "1023-65535", bad},
		{ports, "0", bad},
		{ports, "1024-65536", bad},
		{ports, "50999-50000", bad},
		{ports, "50000-", bad},
		{ports, "-50000", bad},
		{ports, "50000 - 50999", bad},
		{ports, "50000-50100-50200", bad},
	} {
		v := tt.make()
		err := v.UnmarshalText([]byte(tt.in))
		if tt.want == bad {
			if err == nil {
				t.Errorf("%T(%q) = %v; want an error", v, tt.in, v)
			} else if !strings.Contains(err.Error(), "; ") {
				t.Errorf("%T(%q): %v; want what would be right", v, tt.in, err)
			}
			if !reflect.ValueOf(v).Elem().IsZero() {
				t.Errorf("%T(%q) left %v behind", v, tt.in, v)
			}
			continue
		}
		if err != nil {
			t.Errorf("%T(%q): %v", v, tt.in, err)
			continue
		}
		if got := v.(fmt.Stringer).String(); got != tt.want {
			t.Errorf("%T(%q).String() = %q; want %q", v, tt.in, got, tt.want)
		}
		text, err := v.(encoding.TextMarshaler).MarshalText()
		again := tt.make()
		if err == nil {
			err = again.UnmarshalText(text)
		}
		if err != nil || !reflect.DeepEqual(v, again) {
			t.Errorf("%T(%q) came back from %q as %v, %v", v, tt.in, text, again, err)
		}
	}
	if got := (duration(math.MaxInt64)).std(); got != math.MaxInt64 {
		t.Errorf("std = %v", got)
	}
}

func TestNetworkContains(t *testing.T) {
	for _, tt := range []struct {
		network, addr string
		want          bool
	}{
		{"10.0.0.0/8", "10.1.2.3", true},
		{"10.0.0.0/8", "::ffff:10.1.2.3", true},
		{"10.0.0.0/8", "11.0.0.1", false},
		{"::ffff:10.0.0.0/104", "10.1.2.3", true},
		{"0.0.0.0/0", "::1", false},
		{"::/0", "10.1.2.3", false},
		{"fe80::/10", "fe80::1%eth0", true},
		{"fe80::1", "fe80::1%eth0", true},
		{"192.0.2.7", "192.0.2.7", true},
		{"192.0.2.7", "192.0.2.8", false},
	} {
		var n network
		if err := n.UnmarshalText([]byte(tt.network)); err != nil {
			t.Fatal(err)
		}
		if got := n.contains(netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("%s contains %s = %v; want %v", tt.network, tt.addr, got, tt.want)
		}
	}
	if (network{}).contains(netip.Addr{}) || (network{}).contains(netip.MustParseAddr("::")) {
		t.Error("the zero network contains something")
	}
}

func TestDecodeStrict(t *testing.T) {
	type share struct {
		Path  string `toml:"path"`
		Write bool   `toml:"write"`
	}
	type user struct {
		Quota   byteSize         `toml:"quota_bytes"`
		UID     *int             `toml:"uid"`
		Small   uint8            `toml:"small"`
		Rate    float64          `toml:"rate"`
		Shares  map[string]share `toml:"shares"`
		Allow   []network        `toml:"allow_from"`
		Skipped string           `toml:"-"`
	}
	var u user
	errs := decodeStrict("ann.toml", []byte(`quota_bytes = "2GiB"
uid = 1000
small = 255
rate = 2
shares = { public = { path = "/srv", write = true } }
allow_from = ["10.0.0.0/8"]
`), &u)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if u.Quota != 2<<30 || *u.UID != 1000 || u.Small != 255 || u.Rate != 2 || !u.Shares["public"].Write || len(u.Allow) != 1 {
		t.Errorf("decoded %+v", u)
	}

	u = user{Quota: 7}
	errs = decodeStrict("ann.toml", []byte("\ufeff"+`quota_bytes = 2048
uid = "x"
small = 256
shares = { public = { pth = "/srv" } }
allow_from = ["10.0.0.0/8x"]
skipped = ""
`), &u)
	want := `ann.toml:1:15: quota_bytes: 2048 has no unit; write quota_bytes = "10MiB"
ann.toml:2:7: uid: the string "x" where a whole number is needed; write uid = 10
ann.toml:3:9: small: 256 is out of range; write a smaller number, not below 0
ann.toml:4: shares.public.pth: unknown key; did you mean "path"?
ann.toml:5:15: allow_from[0]: "10.0.0.0/8x" is not a network; write "10.0.0.0/8", "2001:db8::/32" or a single address
ann.toml:6: skipped: unknown key; known: quota_bytes, uid, small, rate, shares, allow_from`
	if got := errs.Error(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if u.Quota != 7 || u.UID != nil {
		t.Errorf("wrong values were set: %+v", u)
	}
	// A list that lost its only entry would be the empty one, which allows everyone.
	if len(u.Allow) != 1 || u.Allow[0].contains(netip.MustParseAddr("10.0.0.1")) {
		t.Errorf("allow_from = %v; want one entry that allows nobody", u.Allow)
	}
}

func TestLineOf(t *testing.T) {
	data := []byte(`top = 1
[tls]
key = "k"

[[passive.for]]
network = "10.0.0.0/8"
[[passive.for]]
address = "1"
[listen]
control = [
  "a",
  "b",
]
[commands."a b"]
run = [ "x" ]
[commands.c]
args = { x = "1" }
exec.timeout = 5
broken
after = 1
`)
	for _, tt := range []struct {
		key  string
		want int
	}{
		{"top", 1},
		{"tls", 2},
		{"tls.key", 3},
		{"tls.certificate", 2},
		{"passive.for", 5},
		{"passive.for[0]", 5},
		{"passive.for[0].network", 6},
		{"passive.for[1]", 7},
		{"passive.for[1].address", 8},
		{"passive.for[1].network", 7},
		{"listen.control", 10},
		{"listen.control[1]", 12},
		{`commands."a b".run`, 15},
		{"commands.c.args.x", 17},
		{"commands.c.exec", 18},
		{"commands.c.exec.timeout", 18},
		{"after", 0},
		{"nowhere.at.all", 0},
		{"", 0},
	} {
		if got := lineOf(data, tt.key); got != tt.want {
			t.Errorf("lineOf(%q) = %d; want %d", tt.key, got, tt.want)
		}
	}
}

func TestEditDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"drain", "drain", 0},
		{"Drain", "drain", 0},
		{"drian", "drain", 1},
		{"drains", "drain", 1},
		{"", "abc", 3},
		{"kitten", "sitting", 3},
	} {
		if got := editDistance(tt.a, tt.b); got != tt.want {
			t.Errorf("editDistance(%q, %q) = %d; want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

func TestArgRuleMatchesWholeValues(t *testing.T) {
	for _, tt := range []struct {
		rule, value string
		want        bool
	}{
		{`^[a-z]+$`, "abc", true},
		{`[a-z]+`, "abc; rm", false},
		{`a|b`, "a; rm", false},
		{`a|b`, "b", true},
		{`^[a-z]+$`, "abc\n", false},
		{`(?m)^[a-z]+$`, "abc\nrm", false},
	} {
		re, err := compileArgRule(tt.rule)
		if err != nil {
			t.Fatal(err)
		}
		if got := re.MatchString(tt.value); got != tt.want {
			t.Errorf("rule %q on %q = %v; want %v", tt.rule, tt.value, got, tt.want)
		}
	}
	for _, rule := range []string{"(", "a)(?:b", `\Qa`} {
		if re, err := compileArgRule(rule); err == nil {
			t.Errorf("compileArgRule(%q) = %v; want an error", rule, re)
		}
	}
}

// FuzzConfig: any bytes give a configuration or errors with lines of the file, one
// line each, and never a panic or a loop.
func FuzzConfig(f *testing.F) {
	files, err := filepath.Glob("testdata/config/*.toml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, errs := parseConfig("f", data)
		if cfg == nil {
			t.Fatal("no config")
		}
		lines := bytes.Count(data, []byte("\n")) + 1
		for _, e := range errs {
			if e.Line < 0 || e.Line > lines || e.Problem == "" || strings.ContainsAny(e.Error(), "\r\n") {
				t.Errorf("%d lines, error %#v", lines, e)
			}
			lineOf(data, e.Key)
		}
	})
}

// TestConfigHostileFiles: files that are large, or deep, or wrong in every line are
// refused in bounded time and with a bounded answer.
func TestConfigHostileFiles(t *testing.T) {
	const n = 5000
	for _, tt := range []struct{ name, in string }{
		{"deep list", "a = " + strings.Repeat("[", n)},
		{"deep table", "commands = " + strings.Repeat("{a=", n)},
		{"long key", "commands." + strings.Repeat("a.", n) + "b = 1"},
		{"broken lines", strings.Repeat("x = 5m\n", n)},
		{"empty entries", strings.Repeat("[[passive.for]]\n", n)},
		{"NUL bytes", strings.Repeat("\x00", n)},
		{"one long word", strings.Repeat("x", n) + " = 1"},
		{"one long value", "[log]\nlevel = \"" + strings.Repeat("x", n) + `"`},
	} {
		_, errs := parseConfig("f", []byte(tt.in))
		if len(errs) == 0 || len(errs) > maxConfigErrors {
			t.Errorf("%s: %d errors", tt.name, len(errs))
		}
		for _, e := range errs {
			if text := e.Error(); len(text) > 8*maxQuoted {
				t.Fatalf("%s: an error of %d bytes: %.200s", tt.name, len(text), text)
			}
		}
	}
}
