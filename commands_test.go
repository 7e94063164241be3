package main

// Commands by themselves: what becomes an argument, what a command line that is a cd
// is, how stdin is held, and SITE EXEC, whose plain cases are in
// testdata/ftp/site-exec.txt. Commands over frames are in commands_frames_test.go, the
// runner in runner_test.go. Every program is real.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// --- arguments ---

func TestCommandArguments(t *testing.T) {
	snap := commandConfig{Run: []string{"/bin/snap", "-o", "{file}", "--size={w}x{h}", "{file}.log"},
		Args: map[string]string{"file": `^[a-z0-9-]+\.jpg$`, "w": `\d+`, "h": `\d+`}}
	one := func(rule string) commandConfig {
		return commandConfig{Run: []string{"/bin/one", "{x}"}, Args: map[string]string{"x": rule}}
	}
	long := strings.Repeat("a", maxArgument)
	many := commandConfig{Run: []string{"/bin/many"}, Args: map[string]string{}}
	var sixteen []string
	for i := range maxArguments/maxArgument + 1 {
		hole := fmt.Sprintf("a%c", 'a'+i)
		many.Run = append(many.Run, "{"+hole+"}")
		many.Args[hole] = ".*"
		if i > 0 {
			sixteen = append(sixteen, long)
		}
	}
	for _, c := range []struct {
		name   string
		config commandConfig
		list   []string
		named  map[string]string
		want   []string // nil: refused
		text   string   // that says so
	}{
		{"no argument", commandConfig{Run: []string{"/bin/date", "-u"}}, nil, nil, []string{"/bin/date", "-u"}, ""},
		{"none wanted, one given", commandConfig{Run: []string{"/bin/date"}}, []string{"x"}, nil, nil, "* Usage: cmd"},
		{"none wanted, an empty one", commandConfig{Run: []string{"/bin/date"}}, []string{""}, nil, nil, "* Usage: cmd"},
		{"in the order of the places", snap, []string{"a.jpg", "3", "4"}, nil, []string{"/bin/snap", "-o", "a.jpg", "--size=3x4", "a.jpg.log"}, ""},
		{"by name", snap, nil, map[string]string{"h": "4", "file": "a.jpg", "w": "3"}, []string{"/bin/snap", "-o", "a.jpg", "--size=3x4", "a.jpg.log"}, ""},
		{"too few", snap, []string{"a.jpg", "3"}, nil, nil, "* Usage: cmd FILE W H"},
		{"too many", snap, []string{"a.jpg", "3", "4", "5"}, nil, nil, "* Usage: cmd FILE W H"},
		{"one missing by name", snap, nil, map[string]string{"h": "4", "file": "a.jpg"}, nil, "The argument w is missing. Usage: cmd FILE W H"},
		{"no names at all", snap, nil, map[string]string{}, nil, "The argument file is missing. *"},
		{"an unknown name", snap, nil, map[string]string{"h": "4", "file": "a.jpg", "w": "3", "zoom": "1"}, nil, `cmd has no argument "zoom". *`},
		{"another command's name", snap, nil, map[string]string{"H": "4", "file": "a.jpg", "w": "3"}, nil, `cmd has no argument "H". *`},
		{"a rule missed", snap, []string{"A.jpg", "3", "4"}, nil, nil, `"A.jpg" does not fit the argument file, which matches ^[a-z0-9-]+\.jpg$.`},
		{"a place inside a value is none", one(".*"), []string{"{x}"}, nil, []string{"/bin/one", "{x}"}, ""},
		{"the dollar of a value is none", one(".*"), []string{"$1 ${x} $x"}, nil, []string{"/bin/one", "$1 ${x} $x"}, ""},
		{"one word however it looks", one(".*"), []string{`a b; "c" 'd' $(e) *`}, nil, []string{"/bin/one", `a b; "c" 'd' $(e) *`}, ""},
		{"an empty value the rule allows", one("a?"), []string{""}, nil, []string{"/bin/one", ""}, ""},
		{"an empty value it does not", one("a+"), []string{""}, nil, nil, `"" does not fit *`},

		{"an alternation, the first", one("a|b"), []string{"a"}, nil, []string{"/bin/one", "a"}, ""},
		{"an alternation, the last", one("a|b"), []string{"b"}, nil, []string{"/bin/one", "b"}, ""},
		{"behind the first of an alternation", one("a|b"), []string{"a; rm"}, nil, nil, "* does not fit *"},
		{"before the last of an alternation", one("a|b"), []string{"rm b"}, nil, nil, "* does not fit *"},
		{"anchors within an alternation", one("^a|b$"), []string{"a; rm"}, nil, nil, "* does not fit *"},
		{"without anchors", one("[a-z]+"), []string{"1abc2"}, nil, nil, "* does not fit *"},
		{"anchors of lines", one("(?m)^a$"), []string{"a\nb"}, nil, nil, "* line end*"},
		{"a line end that a rule allows", one("(?s).*"), []string{"a\nb"}, nil, nil, "The argument x holds a NUL or a line end."},
		{"a carriage return", one("(?s).*"), []string{"a\rb"}, nil, nil, "The argument x holds a NUL or a line end."},
		{"a line end behind the dollar", one("^a$"), []string{"a\n"}, nil, nil, "* line end."},
		{"a NUL", one("(?s).*"), []string{"a\x00b"}, nil, nil, "The argument x holds a NUL or a line end."},
		{"bytes that are no UTF-8", one("(?s).*"), []string{"a\xff"}, nil, []string{"/bin/one", "a\xff"}, ""},

		{"a dash that nobody spoke of", one(".*"), []string{"-rf"}, nil, nil, "The argument x may not begin with a dash."},
		{"a dash among others", one("[a-z-]+"), []string{"-rf"}, nil, nil, "The argument x may not begin with a dash."},
		{"a dash that was meant", one("-[a-z]+"), []string{"-rf"}, nil, []string{"/bin/one", "-rf"}, ""},
		{"a sign", one(`[+-]?\d+`), []string{"-3"}, nil, []string{"/bin/one", "-3"}, ""},
		{"a dash in the middle", one("[a-z-]+"), []string{"a-b"}, nil, []string{"/bin/one", "a-b"}, ""},
		{"a dash alone", one(".*"), []string{"-"}, nil, nil, "* may not begin with a dash."},

		{"as long as may be", one("a*"), []string{long}, nil, []string{"/bin/one", long}, ""},
		{"a byte longer", one("a*"), []string{long + "a"}, nil, nil, "An argument has at most 4096 bytes, all together 65536."},
		{"all together as long as may be", many, append([]string{""}, sixteen...), nil, slices.Concat([]string{"/bin/many", ""}, sixteen), ""},
		{"all together a byte longer", many, append([]string{"a"}, sixteen...), nil, nil, "An argument has at most *"},
	} {
		argv, bad := c.config.argv("cmd", c.list, c.named)
		switch {
		case c.want != nil && (bad != nil || !slices.Equal(argv, c.want)):
			t.Errorf("%s: %.200q, %v; want %.200q", c.name, argv, bad, c.want)
		case c.want == nil && (bad == nil || bad.code != codeBadArgument || bad.reason != "arguments" || !wildcard(c.text, bad.text)):
			t.Errorf("%s: %.200q, %+v; want it refused: %s", c.name, argv, bad, c.text)
		}
	}
}

func TestRulesForDashes(t *testing.T) {
	for rule, want := range map[string]bool{
		"-[a-z]":       true,
		"^-[a-z]$":     true,
		`\A-x\z`:       true,
		`(?i)-X`:       true,
		"(-v|-q)":      true,
		"-v|[a-z]+":    true,
		"[a-z]+|-v":    true,
		"(-)?[0-9]+":   true,
		"-?[0-9]+":     true,
		"-*a":          true,
		"-{2}all":      true,
		"(?:--)?all":   true,
		`[+-]\d+`:      true,
		"[-+]?[0-9]*":  true,
		"[-]x":         true,
		"a?-b":         true, // "-b" fits
		"a*-b":         true,
		"":             false,
		".*":           false,
		".-":           false,
		"[a-z-]+":      false,
		"[^a]+":        false,
		`[!-/]+`:       false, // signs of all kinds
		"a-b":          false,
		"a+-b":         false,
		"[a-z]+-[a-z]": false,
		"(":            false,
		`\S+`:          false,
		"(?s).+":       false,
	} {
		if got := allowsDash(rule); got != want {
			t.Errorf("allowsDash(%q) = %v; want %v", rule, got, want)
		}
	}
}

func TestExecArgs(t *testing.T) {
	line := "true"
	for _, c := range []struct {
		args  string
		shell *string
		list  []string
		named map[string]string
		bad   bool
	}{
		{args: ``},
		{args: `null`},
		{args: `[]`, list: []string{}},
		{args: ` ["a","b"]`, list: []string{"a", "b"}},
		{args: `{"a":"b"}`, named: map[string]string{"a": "b"}},
		{args: `{}`, named: map[string]string{}},
		{args: `[1]`, bad: true},
		{args: `[["a"]]`, bad: true},
		{args: `{"a":1}`, bad: true},
		{args: `"a"`, bad: true},
		{args: `1`, bad: true},
		{shell: &line},
		{args: `null`, shell: &line},
		{args: `[]`, shell: &line, bad: true},
	} {
		list, named, err := execArgs(&request{Args: []byte(c.args), Shell: c.shell})
		if (err != nil) != c.bad || err == nil && (!slices.Equal(list, c.list) || fmt.Sprint(named) != fmt.Sprint(c.named)) {
			t.Errorf("args %s: %q, %q, %v", c.args, list, named, err)
		}
	}
}

// A command line that does nothing but cd is meant for the session; anything that a
// shell would read in another way is not.
func TestCommandLinesThatAreCd(t *testing.T) {
	for line, want := range map[string]string{
		"cd":               "/",
		"  cd  ":           "/",
		"cd\n":             "/",
		"cd ~":             "/",
		"cd a":             "a",
		"cd  a/b ":         "a/b",
		"cd ..":            "..",
		"cd /":             "/",
		`cd "a b"`:         "a b",
		`cd 'a $b "c"'`:    `a $b "c"`,
		"cd 'a;b'":         "a;b",
		"cd a-b_c.d":       "a-b_c.d",
		"cd \xc3\xa4":      "\xc3\xa4",
		"cdx":              "",
		"cd a b":           "",
		"cd a; ls":         "",
		"cd a && ls":       "",
		"cd a\nls":         "",
		"cd $HOME":         "",
		"cd `pwd`":         "",
		"cd a*":            "",
		"cd ~/a":           "",
		"cd ~ann":          "",
		"cd -":             "",
		`cd "a$b"`:         "",
		`cd "a\b"`:         "",
		`cd "a"b"`:         "",
		`cd 'a'b'`:         "",
		`cd "a`:            "",
		`cd a\ b`:          "",
		"cd > a":           "",
		"cd #":             "",
		"cd {a,b}":         "",
		"(cd a)":           "",
		"ls; cd a":         "",
		"CD a":             "",
		"":                 "",
		"x=1 cd a":         "",
		"cd ''; echo pwd'": "",
	} {
		dir, ok := changesDirectory(line)
		if ok != (want != "") || ok && dir != want {
			t.Errorf("changesDirectory(%q) = %q, %v; want %q", line, dir, ok, want)
		}
	}
}

func TestSiteLimit(t *testing.T) {
	for limit, want := range map[int64]int64{0: siteOutput, 1: 1, siteOutput: siteOutput, siteOutput + 1: siteOutput, 64 << 20: siteOutput} {
		if got := siteLimit(limit); got != want {
			t.Errorf("siteLimit(%d) = %d; want %d", limit, got, want)
		}
	}
}

func TestSignalNames(t *testing.T) {
	for _, sig := range commandSignals {
		in := &commandRun{control: make(chan programControl, 1), over: make(chan struct{})}
		for _, name := range []string{signalName(sig), "SIG" + signalName(sig), strings.ToLower(signalName(sig))} {
			if err := in.signal(name); err != nil {
				t.Errorf("signal %s: %v", name, err)
			} else if c := <-in.control; c.signal != sig {
				t.Errorf("signal %s is %v", name, c.signal)
			}
		}
		for _, name := range []string{"", "SIG", "9", "SEGV", "TERM ", "SIGSIGTERM"} {
			if in.signal(name) == nil {
				t.Errorf("there is a signal %q", name)
			}
		}
	}
	if got := signalName(200); got != "200" {
		t.Errorf("a signal without a name is %q", got)
	}
}

// --- stdin ---

func TestStdinQueue(t *testing.T) {
	q := newStdinQueue()
	in := &commandRun{stdin: q, look: func() { t.Error("what fits is waited for") }}
	var want []byte
	for i := range stdinAhead / stdinPiece { // all of it without anybody who reads
		p := bytes.Repeat([]byte{byte('a' + i)}, stdinPiece)
		want = append(want, p...)
		in.data(p)
		clear(p) // whoever sent it may use it again
	}
	in.end()
	in.end()
	got, err := io.ReadAll(q)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came out, %v; want the %d that went in", len(got), err, len(want))
	}
	if n, err := q.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("behind the end: %d, %v", n, err)
	}

	// Large pieces come in one by one, to a reader who takes little at once.
	q = newStdinQueue()
	in = &commandRun{stdin: q, look: func() {}}
	var filling sync.WaitGroup
	big := bytes.Repeat([]byte("0123456789"), maxFrame/5)
	filling.Go(func() { in.data(big); in.end() })
	var all bytes.Buffer
	if _, err := io.CopyBuffer(struct{ io.Writer }{&all}, struct{ io.Reader }{q}, make([]byte, 777)); err != nil || !bytes.Equal(all.Bytes(), big) {
		t.Errorf("%d bytes came out, %v; want the %d that went in", all.Len(), err, len(big))
	}
	filling.Wait()
}

// While a command does not take its input, it is looked after the client who sends it;
// when the command is over, neither he nor the command's end of it waits any more.
func TestStdinQueueFull(t *testing.T) {
	q := newStdinQueue()
	looked := make(chan struct{}, 1)
	in := &commandRun{stdin: q, look: func() {
		select {
		case looked <- struct{}{}:
		default:
		}
	}}
	var filling sync.WaitGroup
	filling.Go(func() { in.data(make([]byte, stdinAhead+1)) })
	<-looked
	q.Close()
	q.Close()
	filling.Wait()
	in.data(make([]byte, 2*stdinAhead))
	in.end()

	q = newStdinQueue()
	read := make(chan error, 1)
	go func() {
		_, err := q.Read(make([]byte, 1))
		read <- err
	}()
	q.Close()
	if err := <-read; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a read of what was closed: %v", err)
	}
	(&commandRun{}).data([]byte("for a command without stdin"))
	(&commandRun{}).end()
}

// --- SITE EXEC ---

// execCommands is a configuration with commands for SITE EXEC; execUser may use them.
const (
	execCommands = `exec.kill_after = "300ms"
commands.lines = { run = ["/usr/bin/seq", "{n}"], args = { n = "[0-9]+" } }
commands.wide = { run = ["/usr/bin/head", "-c", "{n}", "/dev/zero"], args = { n = "[0-9]+" } }
commands.nap = { run = ["/bin/sh", "-c", "echo napping; sleep {n}"], args = { n = "[0-9.]+" } }
commands.slow = { run = ["/bin/sh", "-c", "echo first; until [ -e go ]; do sleep 0.01; done; echo last"] }
commands.failing = { run = ["/bin/sh", "-c", "echo on stderr >&2; exit 3"] }
`
	execUser = "commands = [\"lines\", \"wide\", \"nap\", \"slow\", \"failing\"]\n"
)

// siteReply reads the multi-line reply to SITE EXEC, and what the command printed in it.
func (f *ftpClient) siteReply() (body []string, last string) {
	f.t.Helper()
	f.want("200-Output of *")
	for {
		line, err := f.line(replyTime)
		if err != nil {
			f.fatalf("reply: %v after %d lines", err, len(body))
		}
		if !strings.HasPrefix(line, " ") {
			return body, line
		}
		body = append(body, line[1:])
	}
}

func TestSiteExec(t *testing.T) {
	b := newFTPBox(t, realListen+execCommands, execUser)
	c := b.dialReal(t, b.serveReal(t)[0]).login()

	c.send("SITE EXEC lines 9000\r\n")
	body, last := c.siteReply()
	if len(body) != 9000 || body[0] != "1" || body[8999] != "9000" || last != "200 Ended with exit status 0." {
		t.Errorf("%d lines, %.40q…, then %q", len(body), body[:min(3, len(body))], last)
	}

	// The reply is bounded, whatever the command's own limit is, and says so.
	c.send("SITE EXEC lines 100000\r\n")
	body, last = c.siteReply()
	whole := strings.Join(body, "\n")
	if n := len(whole); n < siteOutput-16 || n > siteOutput || !wildcard("200 It wrote more than it may and was ended after 65536 bytes (*).", last) {
		t.Errorf("%d bytes, then %q", n, last)
	}
	for i, l := range body[:len(body)-1] {
		if l != strconv.Itoa(i+1) {
			t.Fatalf("line %d is %q", i+1, l)
		}
	}

	// A line longer than FTP's comes in pieces; not a byte is lost.
	c.send("SITE EXEC wide 20000\r\n")
	body, _ = c.siteReply()
	n := 0
	for _, l := range body {
		if n += len(l); len(l) > 2*maxLine+siteOutput/2 || strings.Trim(l, " ") != "" {
			t.Errorf("a line of %d bytes: %.20q", len(l), l)
		}
	}
	if n != 20000 {
		t.Errorf("%d bytes of 20000", n)
	}

	c.send("SITE EXEC failing\r\n")
	if body, last = c.siteReply(); !slices.Equal(body, []string{"on stderr"}) || last != "200 Ended with exit status 3." {
		t.Errorf("%q, then %q", body, last)
	}
	if got := b.metric(t, "berth_commands_total", "failing", "exited"); got != 1 {
		t.Errorf("berth_commands_total of failing: %v", got)
	}
	c.cmd("NOOP", "200 *")
}

func TestSiteExecAbort(t *testing.T) {
	b := newFTPBox(t, realListen+execCommands, execUser)
	addr := b.serveReal(t)[0]
	c := b.dialReal(t, addr).login()
	mark := newMark()
	c.cmd("SITE EXEC nap "+mark, "200-*", " napping")
	waitUntil(t, "the command sleeps", func() bool { return len(marked(mark)) > 0 })
	c.send("ABOR\r\nPWD\r\n")
	c.want("200 It was ended on request (signal TERM).", "226 *", "257 *")
	wantUnmarked(t, mark, 0)

	// Also as a Telnet Synch; and STAT tells how it is.
	mark = newMark()
	c.cmd("SITE EXEC nap "+mark, "200-*", " napping")
	c.send("\xff\xf4\xff\xf2ABOR\r\n")
	c.want("200 It was ended on request (signal TERM).", "226 *")
	wantUnmarked(t, mark, 0)
	c.cmd("NOOP", "200 *")
}

// A client that has said all it will say gets the whole output, as from nc -N; one that
// is gone ends its command.
func TestSiteExecOfAClientThatCloses(t *testing.T) {
	b := newFTPBox(t, realListen+execCommands, execUser)
	addr := b.serveReal(t)[0]

	c := b.dialReal(t, addr).login()
	c.cmd("SITE EXEC slow", "200-*", " first")
	c.conn.(*net.TCPConn).CloseWrite()
	// Whether it still takes the output is asked by an empty line.
	c.want(" ")
	b.put(t, "go", "")
	var rest []string
	for {
		line, err := c.line(replyTime)
		if err != nil {
			if err != io.EOF {
				t.Error(err)
			}
			break
		}
		rest = append(rest, line)
	}
	if !slices.Equal(rest, []string{" last", "200 Ended with exit status 0."}) {
		t.Errorf("a client that half closed got %q", rest)
	}

	for _, way := range []string{"closed", "reset"} {
		c := b.dialReal(t, addr).login()
		mark := newMark()
		c.cmd("SITE EXEC nap "+mark, "200-*", " napping")
		waitUntil(t, "the command sleeps", func() bool { return len(marked(mark)) > 0 })
		if way == "reset" {
			c.conn.(*net.TCPConn).SetLinger(0)
		}
		c.conn.Close()
		wantUnmarked(t, mark, execGone+2*goneLook)
	}
	waitUntil(t, "the log tells why", func() bool {
		return strings.Count(b.log.String(), "command=nap") == 2 && strings.Count(b.log.String(), "result=client_gone") == 2
	})
}

// Under TLS a clean end is close_notify; nobody reads on behind it.
func TestSiteExecOfATLSClientThatCloses(t *testing.T) {
	b := newFTPBox(t, realListen+execCommands, execUser)
	c := b.dialReal(t, b.serveReal(t)[0])
	c.want("220 *")
	c.cmd("AUTH TLS", "234 *")
	c.startTLS(clientTLS())
	c.cmd("USER ann", "331 *")
	c.cmd("PASS secret", "230 *")
	mark := newMark()
	c.cmd("SITE EXEC nap "+mark, "200-*", " napping")
	c.conn.Close()
	wantUnmarked(t, mark, execGone+2*goneLook)
}

// What the manual tells people to do by hand.
func TestSiteExecByNetcat(t *testing.T) {
	nc, err := exec.LookPath("nc")
	if err != nil {
		t.Skip("no nc(1)")
	}
	b := newFTPBox(t, realListen+execCommands, execUser)
	host, port, _ := net.SplitHostPort(b.serveReal(t)[0].String())
	cmd := exec.Command(nc, "-N", host, port)
	cmd.Stdin = strings.NewReader("USER ann\nPASS secret\nSITE EXEC lines 5000\nQUIT\n")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("nc: %v\n%s", err, out)
	}
	lines := strings.Split(string(out), "\r\n")
	want := []string{"220 *", "331 *", "230 *", "200-Output of lines:"}
	for i := range 5000 {
		want = append(want, " "+strconv.Itoa(i+1))
	}
	want = append(want, "200 Ended with exit status 0.", "221 *", "")
	lines = slices.DeleteFunc(lines, func(l string) bool { return l == " " }) // are you there?
	if !slices.EqualFunc(want, lines, wildcard) {
		t.Errorf("%d lines, %.100q … %.200q; want %d", len(lines), lines[:min(5, len(lines))], lines[max(0, len(lines)-3):], len(want))
	}
}

// --- processes by a mark in their arguments ---

// newMark is a number of seconds that no other process sleeps.
func newMark() string { return fmt.Sprintf("86400.%d", rand.Uint64()) }

// marked are the processes that have mark as an argument, zombies excepted.
func marked(mark string) (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		args, err := os.ReadFile(name)
		if err == nil && slices.Contains(strings.Split(string(args), "\x00"), mark) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// wantUnmarked waits until no process has mark as an argument, which must be within
// that time.
func wantUnmarked(t *testing.T, mark string, within time.Duration) {
	t.Helper()
	began := time.Now()
	var left []int
	for {
		looked := time.Since(began)
		if left = marked(mark); len(left) == 0 {
			return
		}
		if looked > within {
			break
		}
	}
	for _, pid := range left {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		t.Errorf("after %v process %d is still there: %s", within, pid, stat)
		if p, err := os.FindProcess(pid); err == nil {
			p.Kill()
		}
	}
}
