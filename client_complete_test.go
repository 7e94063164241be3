package main

// The scripts for completion, each in its own shell on a terminal: lines are typed with
// Tab in them, and what is then run tells what the line has become. What runs there as
// berth prints its words, one a line; asked for names, it knows some.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// completionBerth is berth where the scripts are tested. It gets the words before the
// current one, too: a port among them is another box.
const completionBerth = `#!/bin/sh
if [ "$1" = __complete ]; then
	shift
	case "$*" in
	*'exec lab'*) printf '%s\n' uptime snap ;;
	*' 2222'*) echo box:on2222 ;;
	box:*) printf '%s\n' 'box:my photos/' 'box:"odd" $name' box:12:30.txt ;;
	*@*) printf '%s\n' "${1%%@*}@lab:" "${1%%@*}@box:" ;;
	*'exec'*) printf '%s\n' lab box ;;
	*) printf '%s\n' lab: box: ;;
	esac
else
	for word; do printf '<%s>' "$word"; done
	echo ' end'
fi
`

// completionLines are what is typed and what berth then gets, in all shells.
var completionLines = []struct{ typed, words string }{
	{"berth ge\t", "<get>"},
	{"berth use\tad\tbob --upl\t1", "<user><add><bob><--upload-rate><1>"},
	{"berth help user ad", "<help><user><ad>"},
	{"berth help disc\t", "<help><discover>"},
	{"berth completion f\t", "<completion><fish>"},
	{"berth ls --lon\tx", "<ls><--long><x>"},
	{"berth ls --color=n\t", "<ls><--color=never>"},
	{"berth ls --color ne\tx", "<ls><--color><never><x>"},
	{"berth ls la\tx", "<ls><lab:x>"},
	{"berth ls ann@la\tx", "<ls><ann@lab:x>"},
	{"berth ls box:my\tx", "<ls><box:my photos/x>"},
	{`berth ls box:my\ p` + "\tx", "<ls><box:my photos/x>"},
	{"berth ls box:12:3\tx", "<ls><box:12:30.txt><x>"},
	{"berth ls box:%\tx", `<ls><box:"odd" $name><x>`},
	{"berth ls -p 2222 box:on\tx", "<ls><-p><2222><box:on2222><x>"},
	{"berth rm so\tx", "<rm><sox>"}, // files here are not there
	{"berth put so\tx", "<put><some file><x>"},
	{"berth put di\tx", "<put><dir one/x>"},
	{"berth put some\\ file la\tx", "<put><some file><lab:x>"},
	{"berth ls --key so\tx", "<ls><--key><some file><x>"},
	{"berth exec la\tup\tx", "<exec><lab><uptime><x>"},
	{"berth exec lab -- -l --lon\tx", "<exec><lab><--><-l><--lonx>"},
}

func TestCompletionInShells(t *testing.T) {
	odd := `\"` // what begins a word that has to be quoted
	for _, shell := range []struct {
		argv  []string
		setup string
		env   string
		value string // between an option and its value
	}{
		{[]string{"bash", "--noprofile", "--norc", "-i"}, "source '%s'; PS1='rea''dy '", "TERM=dumb", ""},
		{[]string{"zsh", "-f", "-i"}, "autoload -U compinit; compinit -u -D; source '%s'; unsetopt beep; PS1='rea''dy '", "TERM=dumb", "="},
		{[]string{"fish", "--no-config", "-i"}, "source '%s'; function fish_prompt; echo -n rea''dy' '; end; function fish_right_prompt; end", "TERM=xterm", ""},
	} {
		t.Run(shell.argv[0], func(t *testing.T) {
			t.Parallel()
			program, err := exec.LookPath(shell.argv[0])
			if err != nil {
				t.Skip(err)
			}
			code, script, errs := cli(t, "completion", shell.argv[0])
			if code != exitOK || errs != "" {
				t.Fatalf("%d, %q", code, errs)
			}
			dir := t.TempDir()
			file := filepath.Join(dir, "script")
			here := filepath.Join(dir, "here")
			for name, text := range map[string]string{file: script, filepath.Join(dir, "berth"): completionBerth, filepath.Join(here, "some file"): ""} {
				if err := errors.Join(os.MkdirAll(filepath.Join(here, "dir one"), 0o755), os.WriteFile(name, []byte(text), 0o755)); err != nil {
					t.Fatal(err)
				}
			}
			if out, err := exec.Command(program, "-n", file).CombinedOutput(); err != nil || len(out) > 0 {
				t.Fatalf("%s -n: %v\n%s", program, err, out)
			}
			cmd := exec.Command(program, shell.argv[1:]...)
			cmd.Dir = here
			cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_DATA_HOME="+dir,
				"HISTFILE=", "INPUTRC=/dev/null", "LC_ALL=C.UTF-8", "PS1=", shell.env)
			terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 200})
			if err != nil {
				t.Fatal(err)
			}
			p := &completionTerminal{t: t, file: terminal, timer: time.AfterFunc(replyTime, func() { terminal.Close() })}
			t.Cleanup(func() {
				p.timer.Stop()
				terminal.Close()
				cmd.Process.Kill()
				cmd.Wait()
			})
			p.line(fmt.Sprintf(shell.setup, file))
			p.until("ready ")
			for _, l := range completionLines {
				p.line(strings.ReplaceAll(l.typed, "%", odd))
				want := l.words
				if shell.value != "" {
					want = strings.Replace(want, "<--upload-rate><1>", "<--upload-rate"+shell.value+"1>", 1)
				}
				if got := completionWords(p.until(" end")); got != want {
					t.Errorf("%q has become %q; want %q", l.typed, got, want)
				}
				p.until("ready ")
			}
		})
	}
}

// completionWords is what berth has printed at the end of what is on the terminal.
func completionWords(shown string) string {
	shown = strings.TrimSuffix(shown, " end")
	return shown[strings.LastIndexAny(shown, "\r\n\a")+1:]
}

// A completionTerminal is a terminal with a shell in it.
type completionTerminal struct {
	t     *testing.T
	file  *os.File
	timer *time.Timer // closes the terminal when nothing has come for too long
	shown []byte
}

func (p *completionTerminal) line(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.file, text+"\r"); err != nil {
		p.t.Fatal(err)
	}
}

// until is what the terminal shows up to a text, which is the end of it.
func (p *completionTerminal) until(text string) string {
	p.t.Helper()
	buf := make([]byte, 4096)
	for {
		if i := bytes.Index(p.shown, []byte(text)); i >= 0 {
			shown := string(p.shown[:i+len(text)])
			p.shown = p.shown[i+len(text):]
			return shown
		}
		n, err := p.file.Read(buf)
		if err != nil {
			p.t.Fatalf("%v before %q; the terminal shows %q", err, text, p.shown)
		}
		p.timer.Reset(replyTime)
		p.shown = append(p.shown, buf[:n]...)
	}
}

func TestCompletionMistakes(t *testing.T) {
	if code, out, errs := cli(t, "completion", "ksh"); code != exitUsage || out != "" || errs != "berth completion: there is no completion for \"ksh\"; there is for bash, zsh, fish\n" {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
	// The hidden verb has nothing to say to people, and does not fail.
	for _, words := range [][]string{{"x", "nosuch"}, {"x", "serve"}, {"/x", "get"}, {"-x", "get", "--nosuch", "-h"}} {
		if code, out, errs := cli(t, append([]string{completeVerb}, words...)...); code != exitOK || out != "" || errs != "" {
			t.Errorf("%q: %d, %q, %q", words, code, out, errs)
		}
	}
	if code, _, _ := cli(t, completeVerb); code != exitUsage {
		t.Error(code)
	}
}

// TestCompletionNames asks for names as the scripts do: the program, on a terminal that it
// must not use, and a box that berth itself is.
func TestCompletionNames(t *testing.T) {
	t.Parallel()
	file, b := writeConfig(t, daemonListen+"exec.sandbox = \"off\"\ncommands.uptime.run = [\"/usr/bin/uptime\"]\ncommands.snap.run = [\"/bin/true\"]\n")
	b.user(t, "ann", "commands = [\"snap\", \"uptime\"]\n")
	for _, name := range []string{"photos/2026/", "map.txt", "my photos/", "my.txt", ".hidden", "a*b", "12:30", "odd\x1b[31m"} {
		name = filepath.Join(b.home, name) + name[len(strings.TrimSuffix(name, "/")):]
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(name, "/") {
			if err := os.WriteFile(name, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	p := serveBerth(t, file, nil)
	_, port, err := net.SplitHostPort(p.addrs["control"])
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := fmt.Sprintf("[hosts.box]\nhost = \"127.0.0.1\"\nport = %s\nuser = \"ann\"\n[hosts.bakery]\nhost = \"192.0.2.1\"\n", port)
	known := "# a comment\n[lab]:2121 sha256:" + strings.Repeat("0", 64) + "\n[::1]:2121 sha256:" + strings.Repeat("0", 64) + "\n"
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "berth"), 0o700), os.WriteFile(filepath.Join(dir, "berth", "config.toml"), []byte(config), 0o600),
		os.WriteFile(filepath.Join(dir, "berth", "known_hosts"), []byte(known), 0o600)); err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ask := func(password string, words ...string) string {
		t.Helper()
		// A shell whose terminal it is, as a person's: a prompt would show on it, and wait.
		cmd := exec.Command("sh", append([]string{"-c", `"$0" "$@"; exit $?`, program, completeVerb}, words...)...)
		cmd.Env = []string{asBerth + "=1", "HOME=" + dir, "XDG_CONFIG_HOME=" + dir, password, "NETRC=" + filepath.Join(dir, "none"),
			"GORACE=atexit_sleep_ms=0"} // a second otherwise, each time
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		terminal, tty, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer terminal.Close()
		cmd.ExtraFiles = []*os.File{tty}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 3}
		if err := cmd.Run(); err != nil || errs.Len() > 0 {
			t.Errorf("%q: %v, %q", words, err, errs.String())
		}
		tty.Close()
		if shown, _ := io.ReadAll(terminal); len(shown) > 0 {
			t.Errorf("%q: the terminal shows %q", words, shown)
		}
		names := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	const secret = "BERTH_PASSWORD=secret"
	for _, test := range []struct{ words, want string }{
		{"|get", "bakery: box: lab:"},
		{"bo|get", "box:"},
		{"eve@b|ls", "eve@bakery: eve@box:"},
		{"b|ping", "bakery box"},
		{"b|exec|-t", "bakery box"},
		{"lo|put", ""},
		{"./b|put", ""},
		{"box:|ls", `box:12:30 box:a\*b box:map.txt box:my photos/ box:my.txt box:photos/`},
		{"box:m|ls", "box:map.txt box:my photos/ box:my.txt"},
		{"box:my p|ls", "box:my photos/"},
		{"box:12:|ls", "box:12:30"},
		{`box:a\|rm`, `box:a\*b`},
		{"box:.|ls", "box:.hidden"},
		{"box:photos/|get", "box:photos/2026/"},
		{"box:nosuch/|get", ""},
		{"box:|sh", "box:my photos/ box:photos/"},
		{"box:|ping", ""},
		{"|exec|box|--", "snap uptime"},
		{"|exec|box", "snap uptime"},
		{"u|exec|-t|box:photos", "uptime"},
		{"|exec|box|snap", ""},
		{"127.0.0.1:map|get|-p|" + port, ""}, // who runs this test is no user there
		{"ann@127.0.0.1:map|get|-p|" + port, "ann@127.0.0.1:map.txt"},
		{"ann@127.0.0.1:map|get|-qp" + port + "|--key", "ann@127.0.0.1:map.txt"},
	} {
		if got := ask(secret, strings.Split(test.words, "|")...); got != test.want {
			t.Errorf("%s: %q; want %q", test.words, got, test.want)
		}
	}
	if got := ask("NO=PASSWORD", "box:m", "ls"); got != "" {
		t.Errorf("without a password there is %q", got)
	}
}

// TestCompletionTables: every verb and every option is in each script.
func TestCompletionTables(t *testing.T) {
	for _, script := range []string{completionBash(), completionZsh(), completionFish()} {
		fields := strings.FieldsFunc(script, func(r rune) bool { return strings.ContainsRune(" \t\n'(){}[]=+,;:*", r) })
		for _, v := range completedVerbs() {
			for name := range strings.FieldsSeq(v.name) {
				if !slices.Contains(fields, name) {
					t.Errorf("%s is not in %.40q", v.name, script)
				}
			}
			for i := range v.options {
				if name := v.options[i].name; !slices.Contains(fields, "--"+name) && !strings.Contains(script, " -l "+name+" ") {
					t.Errorf("--%s of %s is not in %.40q", name, v.name, script)
				}
			}
		}
	}
}
