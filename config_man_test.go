package main

// packaging/berth.toml.5 is written by hand, and must say what the program does: every
// key of berth.toml and of a user's file is in it, with its kind and its default, no
// other is, and what it says needs a restart is what a reload refuses. How the page is
// laid out for that, its first lines tell.

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const configManFile = "packaging/berth.toml.5"

// A manKey is what the page says about one key in its first line.
type manKey struct {
	table, key string
	value      string // its default as TOML; "": it has none
	kind       string
	note       string // behind the kind
}

// name is the key with a table that can be written in front of it.
func (k manKey) name() string {
	return strings.Trim(k.table, "[]") + "." + k.key
}

var manEscapes = strings.NewReplacer(`\(dq`, `"`, `\(aq`, `'`, `\(ti`, `~`, `\-`, `-`)

func configManPage(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile(configManFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// configManKeys is every key of the page, by "table key".
func configManKeys(t *testing.T) map[string]manKey {
	t.Helper()
	heading := regexp.MustCompile(`^\.SS "(.*)"$`)
	line := regexp.MustCompile(`^\\fB([a-z0-9_]+)\\fR(?: = (.*))? \(([^(),]*)(?:, ([^()]*))?\)$`)
	keys := map[string]manKey{}
	table, before := "", ""
	for text := range strings.Lines(configManPage(t)) {
		text = strings.TrimSuffix(text, "\n")
		if m := heading.FindStringSubmatch(text); m != nil {
			table = m[1]
		} else if m := line.FindStringSubmatch(text); m != nil {
			k := manKey{table: table, key: m[1], value: manEscapes.Replace(m[2]), kind: m[3], note: m[4]}
			if _, twice := keys[table+" "+k.key]; twice {
				t.Errorf("%s has %s %s twice", configManFile, table, k.key)
			}
			keys[table+" "+k.key] = k
		} else if before == ".TP" && strings.HasPrefix(text, `\fB`) {
			t.Errorf("%s: %q is not a key as the others are written", configManFile, text)
		}
		before = text
	}
	return keys
}

// manKinds is the word of the page for the values of a type.
func manKinds(typ reflect.Type) []string {
	switch reflect.Zero(typ).Interface().(type) {
	case duration:
		return []string{"time"}
	case byteSize:
		return []string{"size"}
	case portRange:
		return []string{"ports"}
	case network:
		return []string{"network"}
	case []network:
		return []string{"list of networks"}
	case []string:
		return []string{"list of strings", "list of paths", "list of addresses"}
	case map[string]string:
		return []string{"table of strings"}
	}
	if _, isText := reflect.New(typ).Interface().(interface{ UnmarshalText([]byte) error }); isText {
		return []string{"string"}
	}
	switch typ.Kind() {
	case reflect.Pointer:
		return manKinds(typ.Elem())
	case reflect.String:
		return []string{"string"}
	case reflect.Bool:
		return []string{"boolean"}
	case reflect.Int, reflect.Int64, reflect.Uint32:
		return []string{"number"}
	case reflect.Map:
		return []string{"table of tables"}
	}
	return nil
}

// manFields is every key of a struct and of the tables in it, with its type.
func manFields(heading string, typ reflect.Type, all map[string]reflect.Type) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		key := f.Tag.Get("toml")
		path := strings.TrimPrefix(strings.Trim(heading, "[]")+"."+key, ".")
		switch {
		case f.Anonymous:
			manFields(heading, f.Type, all)
		case key == "" || key == "-": // not of the file
		case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct && f.Type != reflect.TypeFor[[]network]():
			manFields("[["+path+"]]", f.Type.Elem(), all)
		case f.Type.Kind() == reflect.Map && f.Type.Elem().Kind() == reflect.Struct:
			if heading != "" { // a key of a user's file; commands is a table of its own
				all[heading+" "+key] = f.Type
			}
			manFields("["+key+".NAME]", f.Type.Elem(), all)
		case heading == "":
			manFields("["+key+"]", f.Type, all)
		default:
			all[heading+" "+key] = f.Type
		}
	}
}

const manUserTable = "users.d/NAME.toml"

func TestConfigManPageKeys(t *testing.T) {
	documented, real := configManKeys(t), map[string]reflect.Type{}
	manFields("", reflect.TypeFor[config](), real)
	manFields(manUserTable, reflect.TypeFor[userFile](), real)
	if len(real) < 60 {
		t.Fatalf("only %d keys are found in the program: %q", len(real), slices.Sorted(maps.Keys(real)))
	}
	readmeSame(t, configManFile, slices.Sorted(maps.Keys(documented)), slices.Sorted(maps.Keys(real)))
	for name, k := range documented {
		if typ := real[name]; typ != nil && !slices.Contains(manKinds(typ), k.kind) {
			t.Errorf("%s: %q is told to be a %s and is one of %q", configManFile, name, k.kind, manKinds(typ))
		}
	}
	var users []string
	for name := range documented {
		if key, ok := strings.CutPrefix(name, manUserTable+" "); ok {
			users = append(users, key)
		}
	}
	readmeSame(t, "the user's keys of "+configManFile, users, userKeys)
}

// TestConfigManPageDefaults writes each default out, which must change nothing, and
// leaves out what must be there, which must be refused.
func TestConfigManPageDefaults(t *testing.T) {
	parse := func(text string) (string, configErrors) {
		c, errs := parseConfig(configManFile, []byte(text))
		return fmt.Sprintf("%+v", *c), errs
	}
	parseUser := func(text string) (string, configErrors) {
		u, errs := parseUserFile(configManFile, "ann", []byte(text), "/users", "/state")
		u.own = 0 // that a key is there is all the difference
		return fmt.Sprintf("%+v", *u), errs
	}
	for name, k := range configManKeys(t) {
		read, base, key := parse, "", k.name()
		others := map[string]string{} // keys that must be there, as TOML
		switch k.table {
		case manUserTable:
			read, key = parseUser, k.key
		case "[shares.NAME]":
			read, key = parseUser, "shares.x."+k.key
			others["path"] = `shares.x.path = "/srv/x"`
		case "[commands.NAME]":
			key = "commands.x." + k.key
			others["run"] = `commands.x.run = ["/bin/true"]`
		case "[[profiles.for]]":
			base, key = "[[profiles.for]]\n", k.key
			others["network"], others["profile"] = `network = "10.0.0.0/8"`, `profile = "camera"`
		case "[[passive.for]]":
			base, key = "[[passive.for]]\n", k.key
			others["network"], others["address"] = `network = "10.0.0.0/8"`, `address = "10.0.0.1"`
		}
		if _, must := others[k.key]; must != (k.note == "must be set") {
			t.Errorf("%s: %q: %q", configManFile, name, k.note)
		}
		if k.note == "must be set" {
			delete(others, k.key)
			if len(others) == 0 && k.table == "[shares.NAME]" {
				others["write"] = "shares.x.write = false"
			} else if len(others) == 0 {
				others["help"] = `commands.x.help = "h"`
			}
		}
		for _, other := range slices.Sorted(maps.Keys(others)) {
			base += others[other] + "\n"
		}
		want, errs := read(base)
		switch {
		case k.note == "must be set":
			if len(errs) == 0 {
				t.Errorf("%s: %q is not needed", configManFile, name)
			}
		case len(errs) > 0:
			t.Errorf("%q: %v", base, errs)
		case k.value == "":
			if k.note != "not set" {
				t.Errorf("%s: %q has no default and no word about it", configManFile, name)
			}
		default:
			if got, errs := read(base + key + " = " + k.value + "\n"); len(errs) > 0 || got != want {
				t.Errorf("%s: %s = %s is not the default: %v", configManFile, key, k.value, errs)
			}
		}
	}
}

// TestConfigManPageRestart changes each key under a running daemon.
func TestConfigManPageRestart(t *testing.T) {
	b := newFTPBox(t, "", "")
	pem := filepath.Join(b.dir, "state", "tls")
	pair := fmt.Sprintf("tls.certificate = %q\ntls.key = %q\n", filepath.Join(pem, "cert.pem"), filepath.Join(pem, "key.pem"))
	other := map[string]string{ // as TOML, where any value of the kind will not do
		"listen.local_mode": `"0600"`, "tls.require": `"always"`, "tls.session_reuse": `"warn"`, "tls.client_ca": fmt.Sprintf("%q", filepath.Join(pem, "cert.pem")),
		"transfer.digest": `"always"`, "exec.sandbox": `"off"`, "exec.runner": `"unix:/run/other"`, "log.format": `"json"`, "log.level": `"warn"`,
	}
	kinds := map[string]string{"string": `"/else"`, "time": `"7s"`, "size": `"7KiB"`, "number": "7", "ports": `"2000-2001"`,
		"list of networks": `["127.0.0.0/8"]`, "list of addresses": `["127.0.0.1:7"]`, "list of paths": `["/run/other"]`, "list of strings": `["ann"]`}
	kept, err := os.ReadFile(b.srv.configPath)
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range configManKeys(t) {
		if k.table == manUserTable || strings.Contains(k.table, ".") {
			continue
		}
		value := other[k.name()]
		switch {
		case value != "":
		case k.kind == "boolean":
			value = map[string]string{"true": "false", "false": "true"}[k.value]
		default:
			value = kinds[k.kind]
		}
		if k.name() == "passive.address" {
			value = `"192.0.2.1"`
		}
		line := k.name() + " = " + value + "\n"
		if strings.HasPrefix(line, "tls.certificate") || strings.HasPrefix(line, "tls.key") {
			line = pair
		}
		var text strings.Builder
		for old := range strings.Lines(string(kept)) {
			if !strings.HasPrefix(old, k.name()+" = ") {
				text.WriteString(old)
			}
		}
		text.WriteString(line)
		if err := os.WriteFile(b.srv.configPath, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		before := b.srv.config()
		err := b.srv.load(before)
		b.srv.current.Store(before)
		refused := err != nil && strings.Contains(err.Error(), "only at a restart")
		if err != nil && !refused {
			t.Errorf("%s: %v", line, err)
		}
		if refused != (k.note == "restart") {
			t.Errorf("%s: %q is marked %q; a reload says: %v", configManFile, name, k.note, err)
		}
	}
}

// TestConfigManPageExamples reads the two examples as what they are.
func TestConfigManPageExamples(t *testing.T) {
	var examples []string
	for _, m := range regexp.MustCompile(`(?s)\n\.RS 4\n(.*?)\.RE\n`).FindAllStringSubmatch(configManPage(t), -1) {
		examples = append(examples, manEscapes.Replace(m[1]))
	}
	if len(examples) != 2 {
		t.Fatalf("%d examples", len(examples))
	}
	if _, errs := parseConfig(configManFile, []byte(examples[0])); len(errs) > 0 {
		t.Error(errs)
	}
	if _, errs := parseUserFile(configManFile, "camera", []byte(examples[1]), "/users", "/state"); len(errs) > 0 {
		t.Error(errs)
	}
}

// TestConfigManPageReaders: the programs that show man pages have nothing to say about it.
func TestConfigManPageReaders(t *testing.T) {
	ran := false
	for _, reader := range [][]string{
		{"groff", "-man", "-Tutf8", "-ww", "-z"},
		{"man", "--warnings", "-E", "UTF-8", "-l"},
		{"mandoc", "-T", "lint", "-W", "warning"},
	} {
		program, err := exec.LookPath(reader[0])
		if err != nil {
			continue
		}
		ran = true
		cmd := exec.Command(program, append(reader[1:], configManFile)...)
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "LC_ALL=C.UTF-8", "MANWIDTH=80")
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		err = cmd.Run()
		if err != nil || errs.Len() > 0 || reader[0] == "mandoc" && out.Len() > 0 {
			t.Errorf("%s: %v\n%s%s", strings.Join(reader, " "), err, &errs, &out)
		}
		if reader[0] == "man" && !strings.Contains(out.String(), "idle_exit") {
			t.Errorf("man shows %q", &out)
		}
	}
	if !ran {
		t.Skip("neither groff, man nor mandoc is here")
	}
	// A hyphen that is none, a quote that a shell does not know, a line that is a macro.
	for _, line := range regexp.MustCompile("(?m)^'.*|^(?:[^.\\n\\\\]|[^.\\n].*[^\\\\])-.*|^.*`.*").FindAllString(configManPage(t), -1) {
		if !strings.HasPrefix(line, ".") {
			t.Errorf("roff takes this for something else: %q", line)
		}
	}
}
