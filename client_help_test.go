package main

// What help and the man page print. The man page in packaging is compared with the table
// byte for byte: go test -run TestMan -update-man writes it anew.

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var updateMan = flag.Bool("update-man", false, "write packaging/berth.1 anew")

func TestHelpOfVerbs(t *testing.T) {
	_, all, _ := cli(t, "-h")
	if code, out, errs := cli(t, "help"); code != exitOK || out != all || errs != "" {
		t.Errorf("help: %d, %q, %q", code, out, errs)
	}
	for _, v := range verbs() {
		if !strings.Contains(all, "\n  berth "+v.name) {
			t.Errorf("help does not list %s", v.name)
		}
		_, want, _ := cli(t, v.name, "-h")
		if code, out, errs := cli(t, "help", v.name); code != exitOK || out != want || errs != "" {
			t.Errorf("help %s: %d, %q, %q", v.name, code, out, errs)
		}
	}
	for _, v := range userVerbs {
		_, want, _ := cli(t, "user", v.name, "-h")
		if code, out, errs := cli(t, "help", "user", v.name); code != exitOK || out != want || errs != "" {
			t.Errorf("help user %s: %d, %q, %q", v.name, code, out, errs)
		}
	}
	for _, test := range []struct {
		words []string
		want  string
	}{
		{[]string{"gte"}, "berth help: there is no command \"gte\"; did you mean get?\n"},
		{[]string{"frobnicate"}, "berth help: there is no command \"frobnicate\"; berth help lists them\n"},
		{[]string{"get", "put"}, "berth help: unexpected argument \"put\"; berth help help tells more\n"},
		{[]string{"user", "ad"}, "berth user: \"ad\" is no verb; did you mean \"add\"?\n"},
	} {
		if code, out, errs := cli(t, append([]string{"help"}, test.words...)...); code != exitUsage || out != "" || errs != test.want {
			t.Errorf("help %q: %d, %q, %q; want %q", test.words, code, out, errs, test.want)
		}
	}
}

func TestHelpText(t *testing.T) {
	const want = `Usage: berth sync [OPTIONS] SRC DST

Make one tree like the other.

One of the two is on a box. As with rsync, dir/ means what is in dir, and dir
`
	_, out, _ := cli(t, "help", "sync")
	if !strings.HasPrefix(out, want) || !strings.Contains(out, "\n  -n, --dry-run\n        say what") || !strings.Contains(out, "(default 60s)\n") {
		t.Errorf("%s", out)
	}
}

func TestManPage(t *testing.T) {
	const file = "packaging/berth.1"
	code, out, errs := cli(t, "man")
	if code != exitOK || errs != "" {
		t.Fatalf("berth man: %d, %q", code, errs)
	}
	if *updateMan {
		if err := os.WriteFile(file, []byte(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	committed, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(committed, []byte(out)) {
		t.Errorf("%s is not what berth man prints; write it anew with: go test -run TestManPage -update-man", file)
	}
	for _, v := range verbs() {
		if !strings.Contains(out, "\n.SS \"berth "+v.name) {
			t.Errorf("%s is not there", v.name)
		}
	}
	for _, heading := range []string{"NAME", "SYNOPSIS", "DESCRIPTION", "FILES", "ENVIRONMENT", `"EXIT STATUS"`, `"SEE ALSO"`} {
		if !strings.Contains(out, "\n.SH "+heading+"\n") {
			t.Errorf("there is no section %s", heading)
		}
	}
	for _, word := range []string{`config.toml`, `known_hosts`, `id.pem`, `\(ti/.netrc`, `/etc/berth/berth.toml`, "BERTH_URL", "BERTH_PASSWORD", "NETRC", "XDG_CONFIG_HOME", "NO_COLOR"} {
		if !strings.Contains(out, "\n\\fB"+word) && !strings.Contains(out, word+`\fR`) {
			t.Errorf("%s is not there", word)
		}
	}
	// A hyphen that is none, a quote that a shell does not know, a line that is a macro.
	if bad := regexp.MustCompile("(?m)^'.*|^\\.[^A-Z\\\\].*|^[^.\\n].*[^\\\\]-.*|^.*`.*").FindAllString(out, -1); bad != nil {
		t.Errorf("roff takes these for something else: %q", bad)
	}
}

// TestManPageReaders: the programs that show man pages have nothing to say about it.
func TestManPageReaders(t *testing.T) {
	_, page, _ := cli(t, "man")
	ran := false
	for _, reader := range [][]string{
		{"groff", "-man", "-Tutf8", "-ww", "-z"},
		{"man", "--warnings", "-E", "UTF-8", "-l", "-"},
		{"mandoc", "-T", "lint"},
	} {
		program, err := exec.LookPath(reader[0])
		if err != nil {
			continue
		}
		ran = true
		cmd := exec.Command(program, reader[1:]...)
		cmd.Stdin = strings.NewReader(page)
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "LC_ALL=C.UTF-8", "MANWIDTH=80")
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil || errs.Len() > 0 || reader[0] == "mandoc" && len(out) > 0 {
			t.Errorf("%s: %v\n%s", strings.Join(reader, " "), err, errs.String())
		}
		if reader[0] == "man" && !strings.Contains(string(out), filepath.Join("/etc", "berth")) {
			t.Errorf("man shows %q", out)
		}
	}
	if !ran {
		t.Skip("neither groff, man nor mandoc is here")
	}
}
