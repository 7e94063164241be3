package main

// The table of verbs, and how words are read with it. The table is tested as data: what
// help, the man page and completion make of it is only as good as what is in it.

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// verbRead reads a command line without its first word, berth.
func verbRead(t *testing.T, words ...string) (*invocation, error) {
	t.Helper()
	v := findVerb(words[0])
	if v == nil {
		t.Fatalf("there is no verb %q", words[0])
	}
	inv := &invocation{verb: v}
	return inv, inv.read(words[1:])
}

func TestVerbWords(t *testing.T) {
	type values = map[string][]string
	for _, test := range []struct {
		line   string // separated by spaces; _ is an empty word
		args   []string
		tail   []string
		values values
	}{
		{"ls", nil, nil, values{}},
		{"ls box:", []string{"box:"}, nil, values{}},
		{"ls -la box:", []string{"box:"}, nil, values{"long": {""}, "all": {""}}},
		{"ls -l box: -a", []string{"box:"}, nil, values{"long": {""}, "all": {""}}},
		{"ls --long box:a --json box:b", []string{"box:a", "box:b"}, nil, values{"long": {""}, "json": {""}}},
		{"ls --color=never", nil, nil, values{"color": {"never"}}},
		{"ls --color never box:", []string{"box:"}, nil, values{"color": {"never"}}},
		{"ls --color never --color=auto", nil, nil, values{"color": {"never", "auto"}}},
		{"ls -p2121 box:", []string{"box:"}, nil, values{"port": {"2121"}}},
		{"ls -p 2121 box:", []string{"box:"}, nil, values{"port": {"2121"}}},
		{"ls -p=2121 box:", []string{"box:"}, nil, values{"port": {"2121"}}},
		{"ls -lp2121 box:", []string{"box:"}, nil, values{"long": {""}, "port": {"2121"}}},
		{"ls -lp 2121 box:", []string{"box:"}, nil, values{"long": {""}, "port": {"2121"}}},
		{"ls -- -l box:", []string{"-l", "box:"}, nil, values{}},
		{"ls -l -- --", []string{"--"}, nil, values{"long": {""}}},
		{"ls - _", []string{"-", ""}, nil, values{}},
		{"put -j4 a box:", []string{"a", "box:"}, nil, values{"jobs": {"4"}}},
		{"put -j 4 a box:", []string{"a", "box:"}, nil, values{"jobs": {"4"}}},
		{"put -rcj4 a box:", []string{"a", "box:"}, nil, values{"recursive": {""}, "continue": {""}, "jobs": {"4"}}},
		{"put - box:a", []string{"-", "box:a"}, nil, values{}},
		{"put --password-file - a box:", []string{"a", "box:"}, nil, values{"password-file": {"-"}}},
		{"put --password-file --quiet a box:", []string{"a", "box:"}, nil, values{"password-file": {"--quiet"}}},
		{"put --limit-rate 500KiB a box:", []string{"a", "box:"}, nil, values{"limit-rate": {"500KiB"}}},
		{"sync a box: --exclude *.tmp --exclude=b", []string{"a", "box:"}, nil, values{"exclude": {"*.tmp", "b"}}},
		{"sync a box: --exclude=", []string{"a", "box:"}, nil, values{"exclude": {""}}},
		{"sync a box: --exclude=a=b", []string{"a", "box:"}, nil, values{"exclude": {"a=b"}}},

		// A number behind mkdir's -p is a port, as everywhere; alone it is mkdir's own.
		{"mkdir -p box:a/b", []string{"box:a/b"}, nil, values{"parents": {""}}},
		{"mkdir box:a -p", []string{"box:a"}, nil, values{"parents": {""}}},
		{"mkdir -pq box:a", []string{"box:a"}, nil, values{"parents": {""}, "quiet": {""}}},
		{"mkdir -p 2121 box:a", []string{"box:a"}, nil, values{"port": {"2121"}}},
		{"mkdir -p2121 box:a", []string{"box:a"}, nil, values{"port": {"2121"}}},
		{"mkdir -qp 2121 box:a", []string{"box:a"}, nil, values{"port": {"2121"}, "quiet": {""}}},
		{"mkdir -p -p 2121 box:a", []string{"box:a"}, nil, values{"parents": {""}, "port": {"2121"}}},
		{"mkdir --port 2121 -p box:a", []string{"box:a"}, nil, values{"parents": {""}, "port": {"2121"}}},

		// What is behind exec's first argument is another program's.
		{"exec box -- ls -l", []string{"box"}, []string{"ls", "-l"}, values{}},
		{"exec box ls -l", []string{"box"}, []string{"ls", "-l"}, values{}},
		{"exec -t box -- a -b", []string{"box"}, []string{"a", "-b"}, values{"tty": {""}}},
		{"exec box -t -- a -b", []string{"box"}, []string{"a", "-b"}, values{"tty": {""}}},
		{"exec box -t a -b -- c", []string{"box"}, []string{"a", "-b", "--", "c"}, values{"tty": {""}}},
		{"exec -p 2121 box a _ --help", []string{"box"}, []string{"a", "", "--help"}, values{"port": {"2121"}}},
		{"exec -- a", nil, []string{"a"}, values{}},
		{"exec box -- --", []string{"box"}, []string{"--"}, values{}},

		{"user add ann --quota 1", []string{"add", "ann", "--quota", "1"}, nil, values{}},
	} {
		words := strings.Fields(test.line)
		for i := range words {
			words[i] = strings.ReplaceAll(words[i], "_", "")
		}
		inv, err := verbRead(t, words...)
		if err != nil || !slices.Equal(inv.args, test.args) || !slices.Equal(inv.tail, test.tail) || !maps.EqualFunc(inv.values, test.values, slices.Equal[[]string]) {
			t.Errorf("%s: %q, %q, %q, %v; want %q, %q, %q", test.line, inv.args, inv.tail, inv.values, err, test.args, test.tail, test.values)
		}
	}
}

func TestVerbMistakes(t *testing.T) {
	for _, test := range []struct {
		line, want string // "help": not a mistake, but -h
	}{
		{"ls --colour never", "there is no option --colour, is it --color?; berth help ls tells more"},
		{"ls --lnog", "there is no option --lnog, is it --long?; berth help ls tells more"},
		{"ls --frobnicate", "there is no option --frobnicate; berth help ls tells more"},
		{"ls -x", "there is no option -x; berth help ls tells more"},
		{"ls -lx", "there is no option -x; berth help ls tells more"},
		{"ls --long=yes", `--long takes no value, got "yes"; berth help ls tells more`},
		{"ls --color", "--color needs a value: --color WHEN"},
		{"ls -p", "-p needs a value: -p PORT"},
		{"ls -lp", "-p needs a value: -p PORT"},
		{"ls --color=red", `--color: "red" is none of auto, always, never`},
		{"ls -p 0", `-p: "0" is not a port; write a number from 1 to 65535`},
		{"ls -p 65536", `-p: "65536" is not a port; write a number from 1 to 65535`},
		{"ls -pbox:", `-p: "box:" is not a port; write a number from 1 to 65535`},
		{"put -j0 a box:", `-j: "0" is not a number above 0; write one as 4`},
		{"put -j -1 a box:", `-j: "-1" is not a number above 0; write one as 4`},
		{"sync --max-delete=many a box:", `--max-delete: "many" is not a number; write one as 4`},
		{"sync a", "something is missing: berth sync SRC DST; berth help sync tells more"},
		{"sync a b c", `unexpected argument "c"; berth help sync tells more`},
		{"cat", "something is missing: berth cat HOST:PATH ...; berth help cat tells more"},
		{"man x", `unexpected argument "x"; berth help man tells more`},
		{"mkdir -p99999 box:a", `--port: "99999" is not a port; write a number from 1 to 65535`},
		{"mkdir -p 99999 box:a", `--port: "99999" is not a port; write a number from 1 to 65535`},
		{"ls -h", "help"},
		{"ls -lh", "help"},
		{"ls box: --help", "help"},
		{"ls -help", "help"},
		{"exec box --help", "help"},
	} {
		inv, err := verbRead(t, strings.Fields(test.line)...)
		if test.want == "help" {
			if !errors.Is(err, errHelp) {
				t.Errorf("%s: %v; want help", test.line, err)
			}
			continue
		}
		if err == nil || err.Error() != test.want || exitCode(err) != exitUsage {
			t.Errorf("%s: %v, exit code %d, after %q; want %q and %d", test.line, err, exitCode(err), inv.args, test.want, exitUsage)
		}
	}
}

func TestVerbValues(t *testing.T) {
	inv, err := verbRead(t, "put", "-j4", "--limit-rate", "1MiB", "--retry=2m", "a", "box:")
	if err != nil {
		t.Fatal(err)
	}
	if inv.number("jobs") != 4 || inv.bytes("limit-rate") != 1<<20 || inv.period("retry").Minutes() != 2 {
		t.Errorf("%d, %d, %v", inv.number("jobs"), inv.bytes("limit-rate"), inv.period("retry"))
	}
	if inv.on("quiet") || inv.str("quiet") != "" || inv.number("port") != 0 {
		t.Error("options that were not given have values")
	}
	if got := inv.period("timeout").Seconds(); got != 60 {
		t.Errorf("the default of --timeout is read as %v s", got)
	}
}

// --- the table ---

func TestVerbTable(t *testing.T) {
	const wide = 100 // columns: no line of help may be as long
	var names []string
	client := false
	for _, v := range verbs() {
		if slices.Contains(names, v.name) {
			t.Errorf("%s is there twice", v.name)
		}
		names = append(names, v.name)
		if client && !v.client {
			t.Errorf("%s stands behind verbs of the client", v.name)
		}
		client = v.client
		if v.help == "" || strings.HasSuffix(v.help, ".") || v.run == nil {
			t.Errorf("%s: help %q, run %v", v.name, v.help, v.run != nil)
		}
		if v.max >= 0 && v.min > v.max || !v.raw && (v.max != 0) != (v.args != "") {
			t.Errorf("%s: from %d to %d arguments, which are %q", v.name, v.min, v.max, v.args)
		}
		if len(v.examples) < 2 {
			t.Errorf("%s has %d examples", v.name, len(v.examples))
		}
		verbOptions(t, &v)
		var help strings.Builder
		v.usage(&help)
		for line := range strings.Lines(help.String()) {
			if utf8.RuneCountInString(line) > wide || line != strings.TrimRight(line, " \n")+"\n" {
				t.Errorf("help %s: %q", v.name, line)
			}
		}
	}
	var list strings.Builder
	usage(&list)
	for line := range strings.Lines(list.String()) {
		if utf8.RuneCountInString(line) > wide {
			t.Errorf("help: %q", line)
		}
	}
}

func verbOptions(t *testing.T, v *verb) {
	t.Helper()
	short := map[byte]string{}
	long := map[string]bool{"help": true}
	for i := range v.options {
		o := &v.options[i]
		if long[o.name] || o.name == "" {
			t.Errorf("%s: --%s is there twice", v.name, o.name)
		}
		long[o.name] = true
		// mkdir has -p as its own, and knows the port by the number behind it.
		if other := short[o.short]; o.short != 0 && other != "" && !slices.ContainsFunc(v.options, func(p option) bool { return p.name == other && p.other == o.name }) {
			t.Errorf("%s: -%c is --%s and --%s", v.name, o.short, other, o.name)
		}
		if o.short == 'h' {
			t.Errorf("%s: -h is help, and not --%s", v.name, o.name)
		}
		if short[o.short] == "" {
			short[o.short] = o.name
		}
		if o.help == "" || strings.HasSuffix(o.help, ".") {
			t.Errorf("%s --%s: help %q", v.name, o.name, o.help)
		}
		if o.arg == "" && (o.def != "" || o.check != nil || len(o.values) > 0) {
			t.Errorf("%s --%s is a switch with a value", v.name, o.name)
		}
		if o.def != "" && o.check != nil && o.check(o.def) != nil || o.def != "" && len(o.values) > 0 && !slices.Contains(o.values, o.def) {
			t.Errorf("%s --%s: its own default %q is refused", v.name, o.name, o.def)
		}
	}
}

// verbExamples are the command lines of berth in what a person would type: without the
// word berth, and without the other programs.
func verbExamples(line string) [][]string {
	var found [][]string
	var words []string
	word, quote, began := "", rune(0), false
	end := func() {
		if began {
			words = append(words, word)
		}
		word, began = "", false
	}
	command := func() {
		end()
		if len(words) > 0 && words[0] == "berth" {
			found = append(found, words[1:])
		}
		words = nil
	}
	for _, c := range line {
		switch {
		case c == quote:
			quote = 0
		case quote != 0:
			word += string(c)
		case c == '\'' || c == '"':
			quote, began = c, true
		case c == ' ':
			end()
		case strings.ContainsRune("|&<>()", c):
			command()
		default:
			word, began = word+string(c), true
		}
	}
	command()
	return found
}

// TestVerbExamples: what help shows can be typed.
func TestVerbExamples(t *testing.T) {
	type line struct{ of, text string }
	var lines []line
	for _, v := range verbs() {
		for _, e := range v.examples {
			if e.what == "" {
				t.Errorf("%s: nothing is said of %s", v.name, e.line)
			}
			lines = append(lines, line{v.name, e.line})
		}
	}
	for _, e := range manExamples {
		lines = append(lines, line{"", e.term})
	}
	for _, v := range userVerbs {
		lines = append(lines, line{"user", v.example})
	}
	for _, l := range lines {
		commands := verbExamples(l.text)
		if len(commands) != 1 {
			t.Errorf("%s: %q is %d commands of berth", l.of, l.text, len(commands))
			continue
		}
		words := commands[0]
		if len(words) > 0 && words[0] == "--version" {
			words[0] = "version"
		}
		if len(words) == 0 || l.of != "" && words[0] != l.of {
			t.Errorf("%s: %q is about another command", l.of, l.text)
			continue
		}
		inv, err := verbRead(t, words...)
		if err == nil && inv.verb.raw {
			i := slices.IndexFunc(userVerbs, func(v userVerb) bool { return v.name == inv.args[0] })
			err = (&userCommand{edits: map[string]string{}, shares: map[string]string{}}).parse(&userVerbs[i], inv.args[1:])
		}
		if err != nil {
			t.Errorf("%s: %q: %v", l.of, l.text, err)
		}
		if inv.verb.command && len(inv.tail) == 0 {
			t.Errorf("%s: %q runs nothing", l.of, l.text)
		}
	}
}

func TestVerbNear(t *testing.T) {
	for word, want := range map[string]string{
		"gte":        `there is no command "gte"; did you mean get?`,
		"disocver":   `there is no command "disocver"; did you mean discover?`,
		"frobnicate": `there is no command "frobnicate"; berth help lists them`,
		"x":          `there is no command "x"; berth help lists them`,
		"a\x1b[31m":  `there is no command "a\x1b[31m"; berth help lists them`,
	} {
		if err := noVerb(word); err.Error() != want || exitCode(err) != exitUsage {
			t.Errorf("%q: %v; want %s", word, err, want)
		}
	}
}
