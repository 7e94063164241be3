package main

// Commands over frames, on the real server over plain TCP, TLS and the unix socket, and
// in a daemon of its own: what comes back of every way to end, streams in both
// directions, limits, and what a command finds. That it ends with its client is in
// commands_gone_test.go.

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// --- a client ---

// execClient is an ftpClient whose session speaks frames and runs commands.
type execClient struct{ *ftpClient }

// execResult is all that came of one exec.
type execResult struct {
	Code   int    `json:"code"`
	Text   string `json:"text"`
	Reason string `json:"reason"`
	Exit   *int   `json:"exit"`
	Signal string `json:"signal"`
	CPU    int64  `json:"cpu_ms"`
	MaxRSS int64  `json:"max_rss"`
	Bytes  int64  `json:"bytes"`

	ran      bool // 150 came
	out, err []byte
}

func (r *execResult) String() string {
	exit := "none"
	if r.Exit != nil {
		exit = strconv.Itoa(*r.Exit)
	}
	return fmt.Sprintf("%d %s exit %s signal %q ran %v %q out %.200q err %.200q", r.Code, r.Reason, exit, r.Signal, r.ran, r.Text, r.out, r.err)
}

// is compares how it ended; exit below 0 is none.
func (r *execResult) is(code int, reason string, exit int, signal string) bool {
	return r.Code == code && r.Reason == reason && r.Signal == signal && (r.Exit == nil) == (exit < 0) && (r.Exit == nil || *r.Exit == exit)
}

// execFrames goes over to frames on a session that is logged in.
func (f *ftpClient) execFrames() *execClient {
	f.t.Helper()
	f.cmd("FRAM 1", "200 *")
	return &execClient{f}
}

func (c *execClient) frame(t frameType, payload string) {
	c.t.Helper()
	c.send(string(appendFrame(nil, t, []byte(payload))))
}

// take reads the next frame that is not the server's asking whether anybody is there.
func (c *execClient) take() (t frameType, p []byte, err error) {
	c.conn.SetReadDeadline(time.Now().Add(replyTime))
	for t = framePing; t == framePing && err == nil; {
		t, p, err = readFrame(c.r, nil)
	}
	return t, p, err
}

// ask sends an exec; fields are those of the request.
func (c *execClient) ask(fields string) {
	c.t.Helper()
	c.frame(frameRequest, `{"do":"exec",`+fields+`}`)
}

// sh asks for a command line; more are fields, each with a comma in front.
func (c *execClient) sh(line, more string) {
	c.t.Helper()
	c.ask(`"shell":` + string(encodeJSON(line)) + more)
}

// opened reads the answer that says it runs.
func (c *execClient) opened() {
	c.t.Helper()
	t, p, err := c.take()
	if err != nil || t != frameAnswer || !bytes.Contains(p, []byte(`"code":150`)) {
		c.fatalf("want 150, got %s %.300q, %v", t, p, err)
	}
}

// until reads output until it holds text.
func (c *execClient) until(text string) (out []byte) {
	c.t.Helper()
	for !bytes.Contains(out, []byte(text)) {
		t, p, err := c.take()
		switch {
		case err != nil || t == frameAnswer && !bytes.Contains(p, []byte(`"code":150`)):
			c.fatalf("want %q: %s %.300q, %v behind %.300q", text, t, p, err, out)
		case t == frameData || t == frameStderr:
			out = append(out, p...)
		}
	}
	return out
}

// result reads up to the final answer.
func (c *execClient) result() *execResult {
	c.t.Helper()
	r := &execResult{}
	c.resultTo(r, func(t frameType, p []byte) {
		if t == frameData {
			r.out = append(r.out, p...)
		} else {
			r.err = append(r.err, p...)
		}
	})
	return r
}

func (c *execClient) resultTo(r *execResult, output func(t frameType, p []byte)) {
	c.t.Helper()
	for {
		t, p, err := c.take()
		if err != nil {
			c.fatalf("no answer to exec: %v behind %.300q, %.300q", err, r.out, r.err)
		}
		switch t {
		case frameData, frameStderr:
			output(t, p)
		case frameAnswer:
			var a execResult
			if err := json.Unmarshal(p, &a); err != nil {
				c.fatalf("answer %.300q: %v", p, err)
			}
			if a.Code/100 == 1 {
				r.ran = true
				continue
			}
			a.ran, a.out, a.err = r.ran, r.out, r.err
			*r = a
			return
		default:
			c.fatalf("a frame of type %s", t)
		}
	}
}

// run is ask and result.
func (c *execClient) run(fields string) *execResult {
	c.t.Helper()
	c.ask(fields)
	return c.result()
}

func (c *execClient) runSh(line string) *execResult {
	c.t.Helper()
	c.sh(line, "")
	return c.result()
}

// --- servers ---

const (
	execKillAfter = 300 * time.Millisecond
	// execGone is within what nothing of a command is left: design section 8.
	execGone = execKillAfter + programGone

	frameCommands = execCommands + `exec.output = "1MiB"
server.drain = "5s"
limits.data_timeout = "15s"
commands.env = { run = ["/usr/bin/env"] }
commands.none = { run = ["/no/such/program"] }
commands.data = { run = ["/etc/passwd"] }
commands.say = { run = ["/usr/bin/printf", "%s", "{word}"], args = { word = "(?s).*" } }
commands.brief = { run = ["/bin/sh", "-c", "echo begun; sleep {n}"], args = { n = "[0-9.]+" }, timeout = "500ms" }
commands.screen = { run = ["/bin/sh", "-c", "stty size"], tty = true }
commands.others = { run = ["/bin/true"] }
`
	frameUser = "shell = true\ncommands = [\"env\", \"none\", \"data\", \"say\", \"brief\", \"screen\", \"failing\"]\n"
)

// execBox is a server with a listener of each kind.
type execBox struct {
	*ftpBox
	addrs []net.Addr // control, tls, local
}

// execWays is how a client reaches it.
var execWays = []string{"plain", "explicit TLS", "implicit TLS", "local"}

func newExecBox(t *testing.T, config, user string) *execBox {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth") // t's own name may be too long for a socket's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	listen := fmt.Sprintf("listen = { control = [\"127.0.0.1:0\"], tls = [\"127.0.0.1:0\"], datagram = [], http = [], local = [%q] }\n", filepath.Join(dir, "s"))
	b := newFTPBox(t, config+frameCommands+listen, user+frameUser+fmt.Sprintf("uid = %d\n", os.Getuid()))
	return &execBox{b, b.serveReal(t)}
}

// enter is a session of ann's that speaks frames.
func (b *execBox) enter(t *testing.T, way string) *execClient {
	t.Helper()
	var c *ftpClient
	switch way {
	case "plain":
		c = b.dialReal(t, b.addrs[0]).login()
	case "explicit TLS":
		c = b.dialReal(t, b.addrs[0])
		c.want("220 *")
		c.cmd("AUTH TLS", "234 *")
		c.startTLS(clientTLS())
		c.cmd("USER ann", "331 *")
		c.cmd("PASS secret", "230 *")
	case "implicit TLS":
		c = b.dialReal(t, b.addrs[1])
		c.startTLS(clientTLS())
		c.login()
	case "local":
		conn, err := net.Dial("unix", b.addrs[2].String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		c = &ftpClient{t: t, box: b.ftpBox, bare: conn, conn: conn, r: bufio.NewReader(conn)}
		c.want("220 *")
	}
	return c.execFrames()
}

// --- how commands end, and what comes of them ---

// playExec is what every way to run a command must do.
func playExec(t *testing.T, c *execClient) {
	for _, e := range []struct {
		fields string
		code   int
		reason string
		exit   int // -1: none
		signal string
		out    string
		err    string
	}{
		{`"shell":"exit 0"`, 226, "exited", 0, "", "", ""},
		{`"shell":"exit 1"`, 226, "exited", 1, "", "", ""},
		{`"shell":"exit 126"`, 226, "exited", 126, "", "", ""},
		{`"shell":"exit 127"`, 226, "exited", 127, "", "", ""},
		{`"shell":"exit 255"`, 226, "exited", 255, "", "", ""},
		{`"shell":"kill -TERM $$"`, 226, "signalled", -1, "TERM", "", ""},
		{`"shell":"kill -KILL $$"`, 226, "signalled", -1, "KILL", "", ""},
		{`"shell":"kill -SEGV $$"`, 226, "signalled", -1, "SEGV", "", ""},
		{`"shell":"echo out; echo err >&2; printf more"`, 226, "exited", 0, "", "out\nmore", "err\n"},
		{`"shell":"/no/such/program"`, 226, "exited", 127, "", "", "*not found\n"},
		{`"shell":"/etc/passwd"`, 226, "exited", 126, "", "", "*ermission denied\n"},
		{`"shell":""`, 226, "exited", 0, "", "", ""},
		{`"shell":"cat"`, 226, "exited", 0, "", "", ""}, // no stdin: /dev/null
		{`"command":"none"`, 550, "start_failed", 127, "", "", ""},
		{`"command":"data"`, 550, "start_failed", 126, "", "", ""},
		{`"command":"say","args":["a b\u0001"]`, 226, "exited", 0, "", "a b\x01", ""},
		{`"command":"say","args":{"word":"Gr\u00fc\u00dfe"}`, 226, "exited", 0, "", "Grüße", ""},
		{`"command":"say","args":[""]`, 226, "exited", 0, "", "", ""},
		{`"command":"failing","args":[]`, 226, "exited", 3, "", "", "on stderr\n"},
		{`"command":"brief","args":["86400"]`, 226, "timeout", -1, "TERM", "begun\n", ""},
	} {
		r := c.run(e.fields)
		for range 4 { // of half a second a busy machine may leave too little to begin, or to end at the first signal
			if e.reason == "timeout" && (string(r.out) != e.out || r.Signal != e.signal) {
				r = c.run(e.fields)
			}
		}
		if !r.is(e.code, e.reason, e.exit, e.signal) || string(r.out) != e.out || !wildcard(e.err, string(r.err)) || r.ran != (e.code == 226) {
			t.Errorf("exec %s: %s", e.fields, r)
		}
		if r.Bytes != int64(len(r.out)+len(r.err)) {
			t.Errorf("exec %s: %d bytes told, %d came", e.fields, r.Bytes, len(r.out)+len(r.err))
		}
	}

	// Bytes of every kind, there and back.
	var all []byte
	for i := range 400 << 10 {
		all = append(all, byte(i+i>>8))
	}
	c.sh("cat; exec cat /no/such/file", `,"stdin":true`)
	go func() { // cat does not wait for its last byte either
		for p := range slices.Chunk(all, 100_000) {
			c.conn.Write(appendFrame(nil, frameData, p))
		}
		c.conn.Write(appendFrame(nil, frameEnd, nil))
	}()
	if r := c.result(); !r.is(226, "exited", 1, "") || !bytes.Equal(r.out, all) || len(r.err) == 0 {
		t.Errorf("%d bytes through cat: %d came back: %s", len(all), len(r.out), r)
	}
	// What is not wanted any more is no error, nor is an end behind the end.
	c.sh("head -c 3", `,"stdin":true`)
	c.frame(frameData, "abcdef")
	if r := c.result(); !r.is(226, "exited", 0, "") || string(r.out) != "abc" {
		t.Errorf("head: %s", r)
	}
	c.frame(frameData, "more")
	c.frame(frameEnd, "{}")
	c.sh("wc -c", `,"stdin":true`)
	c.frame(frameEnd, "")
	if r := c.result(); !r.is(226, "exited", 0, "") || strings.TrimSpace(string(r.out)) != "0" {
		t.Errorf("no input: %s", r)
	}

	// Signals, also while the command goes on.
	c.sh("trap 'echo USR1' USR1; trap 'echo TERM; exit 7' TERM; echo up; while :; do sleep 0.01; done 2>/dev/null", "")
	c.until("up\n")
	c.frame(frameSignal, `{"signal":"USR1"}`)
	c.until("USR1\n")
	c.frame(frameSignal, `{"signal":"SIGTERM"}`)
	if r := c.result(); !r.is(226, "exited", 7, "") || !bytes.Contains(r.out, []byte("TERM\n")) {
		t.Errorf("a signal that is handled: %s", r)
	}
	for _, name := range []string{"INT", "HUP", "KILL", "USR2", "ALRM"} {
		c.sh("echo up; exec sleep 86400", "")
		c.until("up\n")
		c.frame(frameSignal, `{"signal":"`+name+`"}`)
		if r := c.result(); !r.is(226, "signalled", -1, name) {
			t.Errorf("signal %s: %s", name, r)
		}
	}
	c.sh("echo up; exec sleep 86400", "")
	c.until("up\n")
	c.frame(frameSignal, `{"signal":"STOP"}`)
	c.frame(frameSignal, `{"signal":"CONT"}`)
	c.frame(frameSignal, `{"signal":"TERM"}`)
	if r := c.result(); !r.is(226, "signalled", -1, "TERM") {
		t.Errorf("stopped, continued, ended: %s", r)
	}

	// Output without end, until it is cancelled; then the connection is as good as new.
	for _, line := range []string{"while :; do echo tick; sleep 0.01; done", "yes tick", "top -b -d 0.1 2>&1 || yes tick", "trap '' TERM; echo tick; while :; do :; done"} {
		c.sh(line, "")
		c.opened()
		if t, p, err := c.take(); err != nil || t != frameData || len(p) == 0 {
			c.fatalf("%s: %s %.200q, %v", line, t, p, err)
		}
		c.frame(frameCancel, "")
		// yes may have gone past the bound by itself
		if r := c.result(); (r.Code != 426 || r.Reason != "cancelled") && !(line == "yes tick" && r.Reason == "output_limit") {
			t.Errorf("%s, cancelled: %s", line, r)
		}
	}
	c.frame(frameCancel, "") // of nothing
	if r := c.runSh("head -c 3000000 /dev/zero"); r.Code != 226 || r.Reason != "output_limit" || len(r.out) != 1<<20 || r.Bytes != 1<<20 {
		t.Errorf("too much output: %d bytes, %s", len(r.out), r)
	}
	r := c.runSh("seq 100000")
	if want := lineSum(100_000); sha256.Sum256(r.out) != want || !r.is(226, "exited", 0, "") {
		t.Errorf("100,000 lines are %d bytes, %s", len(r.out), r)
	}
	if r.MaxRSS <= 0 || r.CPU < 0 {
		t.Errorf("%d ms, %d bytes of memory", r.CPU, r.MaxRSS)
	}

	// A terminal of some size, which changes.
	c.sh(`stty size; trap 'stty size' WINCH; echo up; while :; do read x || :; [ "$x" = end ] && exit 4; echo got $x; done`, `,"tty":true,"rows":40,"cols":120`)
	if out := c.until("up\r\n"); !bytes.HasPrefix(out, []byte("40 120\r\n")) {
		t.Errorf("the terminal is %q", out)
	}
	c.frame(frameWindow, `{"rows":50,"cols":132}`)
	c.until("50 132\r\n")
	c.frame(frameData, "word\n")
	c.until("got word\r\n")
	c.frame(frameData, "end\n")
	if r := c.result(); !r.is(226, "exited", 4, "") || len(r.err) != 0 {
		t.Errorf("on a terminal: %s", r)
	}
	// A control character there is a signal to what is in the foreground, or the end of input.
	mark := newMark()
	c.sh("sleep "+mark+"; echo on", `,"tty":true`)
	waitUntil(t, "it sleeps", func() bool { return len(marked(mark)) > 0 }) // a shell that forks hears nothing
	c.frame(frameData, "\x03")
	if r := c.result(); !r.is(226, "exited", 130, "") && !r.is(226, "signalled", -1, "INT") {
		t.Errorf("^C: %s", r)
	}
	c.sh("cat; echo end; tty; echo $TERM", `,"tty":true,"term":"vt100"`)
	c.frame(frameData, "line\n\x04")
	if r := c.result(); !r.is(226, "exited", 0, "") || !bytes.Contains(r.out, []byte("end\r\n/dev/pts/")) || !bytes.HasSuffix(r.out, []byte("vt100\r\n")) {
		t.Errorf("^D: %s", r)
	}
	if r := c.run(`"command":"screen","tty":true`); string(r.out) != "24 80\r\n" {
		t.Errorf("a terminal without a size: %s", r)
	}
	if r := c.run(`"command":"env","tty":true`); !r.is(504, "no_tty", -1, "") {
		t.Errorf("a terminal for what has none: %s", r)
	}

	// The directory.
	for _, e := range []struct{ line, out, err string }{
		{"mkdir -p there/deep; touch there/x", "", ""},
		{"pwd", "*/home\n", ""},
		{"cd there", "", ""},
		{"ls", "deep\nx\n", ""},
		{"cd deep", "", ""},
		{"pwd; echo $PWD", "*/home/there/deep\n*/home/there/deep\n", ""},
		{"cd ..; pwd", "*/there\n", ""},
		{"pwd", "*/deep\n", ""}, // that was the shell's own
		{"cd nowhere", "", "cd: nowhere: *\n"},
		{"cd ../x", "", "cd: ../x: *\n"},
		{"cd ../../../..", "", ""},
		{"pwd", "*/home\n", ""},
	} {
		r := c.runSh(e.line)
		if !wildcard(e.out, string(r.out)) || !wildcard(e.err, string(r.err)) || r.Code != 226 || r.Exit == nil || (*r.Exit != 0) != (e.err != "") {
			t.Errorf("%s: %s; want %q, %q", e.line, r, e.out, e.err)
		}
	}
	c.frame(frameRequest, `{"do":"cd","path":"/there/deep"}`)
	if _, p, _ := c.take(); !bytes.Contains(p, []byte(`"code":250`)) {
		t.Errorf("cd: %s", p)
	}
	if r := c.runSh("pwd"); !wildcard("*/home/there/deep\n", string(r.out)) {
		t.Errorf("behind a cd request: %s", r)
	}
	if r := c.runSh("cd"); !r.is(226, "exited", 0, "") {
		t.Errorf("cd: %s", r)
	}
	if r := c.runSh(`cd "$HOME/there" && pwd`); !wildcard("*/home/there\n", string(r.out)) {
		t.Errorf("a cd of the shell's own: %s", r)
	}
}

// lineSum is the digest of what seq n prints.
func lineSum(n int) (sum [sha256.Size]byte) {
	h := sha256.New()
	writeLines(h, n)
	h.Sum(sum[:0])
	return sum
}

func writeLines(h hash.Hash, n int) {
	var line []byte
	for i := range n {
		line = append(strconv.AppendInt(line, int64(i+1), 10), '\n')
		if len(line) > 32<<10 || i == n-1 {
			h.Write(line)
			line = line[:0]
		}
	}
}

func TestExec(t *testing.T) {
	b := newExecBox(t, "", "")
	for _, way := range []string{"plain", "explicit TLS", "local"} {
		t.Run(way, func(t *testing.T) {
			c := b.enter(t, way)
			playExec(t, c)
			c.frame(frameRequest, `{"do":"quit"}`)
			if _, p, err := c.take(); !bytes.Contains(p, []byte("221")) {
				t.Errorf("quit: %s, %v", p, err)
			}
		})
		os.RemoveAll(filepath.Join(b.home, "there"))
	}
}

// --- many at once ---

func TestExecManyAtOnce(t *testing.T) {
	const many = 50
	b := newExecBox(t, "", "sessions = 100\n")
	var clients []*execClient
	for i := range many {
		c := b.enter(t, execWays[i%len(execWays)])
		c.sh(fmt.Sprintf("read x; echo $x; seq %d 2000; exit %d", i, i), `,"stdin":true`)
		clients = append(clients, c)
	}
	for i, c := range clients { // all of them run now
		c.opened()
		c.frame(frameData, fmt.Sprintf("client %d\n", i))
	}
	for i, c := range clients {
		r := c.result()
		want := fmt.Sprintf("client %d\n", i)
		for n := i; n <= 2000; n++ {
			want += strconv.Itoa(n) + "\n"
		}
		if !r.is(226, "exited", i, "") || string(r.out) != want {
			t.Errorf("client %d: %d bytes, %s", i, len(r.out), r)
		}
	}
	if got := b.metric(t, "berth_commands_total", "shell", "exited"); got != many {
		t.Errorf("berth_commands_total: %v", got)
	}
}

func TestExecParallelCaps(t *testing.T) {
	b := newExecBox(t, "exec.parallel = 3\nexec.parallel_per_user = 2\n", "")
	b.user(t, "bob", "shell = true\ncommands = [\"wide\"]\n")
	b.user(t, "eve", "shell = true\n")
	if err := b.srv.reload(); err != nil {
		t.Fatal(err)
	}
	as := func(name string) *execClient {
		f := b.dialReal(t, b.addrs[0])
		f.want("220 *")
		f.cmd("USER "+name, "331 *")
		f.cmd("PASS secret", "230 *")
		return f.execFrames()
	}
	hold := func(c *execClient) *execClient {
		c.sh("read x", `,"stdin":true`)
		c.opened()
		return c
	}
	one, two, three := hold(as("ann")), hold(as("ann")), as("ann")
	if r := three.runSh("true"); !r.is(450, "busy", -1, "") || !strings.Contains(r.Text, "You have 2 commands running") {
		t.Errorf("a third one of the same user: %s", r)
	}
	bob, eve := hold(as("bob")), as("eve")
	if r := eve.runSh("true"); !r.is(450, "busy", -1, "") || !strings.Contains(r.Text, "3 commands are running") {
		t.Errorf("a fourth one: %s", r)
	}
	// SITE EXEC counts with the others.
	site := b.dialReal(t, b.addrs[0]).login()
	site.cmd("SITE EXEC failing", "450 You have 2 commands running*")
	one.frame(frameEnd, "")
	one.result()
	if r := three.runSh("echo ok"); string(r.out) != "ok\n" {
		t.Errorf("when one has ended: %s", r)
	}
	two.frame(frameCancel, "")
	two.result()
	bob.conn.Close()
	waitUntil(t, "places are given back", func() bool {
		b.srv.mu.Lock()
		defer b.srv.mu.Unlock()
		return b.srv.commands == 0
	})
	if r := eve.runSh("echo ok"); string(r.out) != "ok\n" {
		t.Errorf("when all have ended: %s", r)
	}
	site.cmd("SITE EXEC failing", "200-*", " on stderr", "200 *")
}

// --- what may not be run ---

func TestExecRefused(t *testing.T) {
	b := newExecBox(t, "", "")
	b.user(t, "bob", "commands = [\"say\"]\n")
	b.user(t, "eve", "")
	if err := b.srv.reload(); err != nil {
		t.Fatal(err)
	}
	ann := b.enter(t, "plain")
	as := func(name string) *execClient {
		f := b.dialReal(t, b.addrs[0])
		f.want("220 *")
		f.cmd("USER "+name, "331 *")
		f.cmd("PASS secret", "230 *")
		return f.execFrames()
	}
	bob, eve := as("bob"), as("eve")
	for _, e := range []struct {
		c      *execClient
		fields string
		code   int
		reason string
		text   string
	}{
		{ann, `"command":"others"`, 550, "denied", `This account has no command "others". It has env, *.`},
		{ann, `"command":"nosuch"`, 550, "denied", `This account has no command "nosuch". *`},
		{bob, `"command":"env"`, 550, "denied", `This account has no command "env". It has say.`},
		{eve, `"command":"say","args":["x"]`, 550, "denied", `This account has no command "say".`},
		{bob, `"shell":"id"`, 550, "denied", "This account may not run command lines."},
		{bob, `"shell":"cd /"`, 550, "denied", "This account may not run command lines."},
		{bob, `"command":"say","tty":true,"args":["x"]`, 504, "no_tty", "say has no terminal."},
		{ann, `"command":"say","args":[]`, 501, "arguments", "* Usage: say WORD"},
		{ann, `"command":"say","args":["a\nb"]`, 501, "arguments", "* line end."},
		{ann, `"command":"say","args":["a\u0000b"]`, 501, "arguments", "* NUL *"},
		{ann, `"command":"say","args":["-x"]`, 501, "arguments", "* dash."},
		{ann, `"command":"say","args":{"words":"x"}`, 501, "arguments", `say has no argument "words". *`},
		{ann, `"command":"say","args":"x"`, 501, "bad_request", "args are a list of strings, *"},
		{ann, `"command":"say","args":[1]`, 501, "bad_request", "args are a list of strings, *"},
		{ann, `"shell":"true","args":[]`, 501, "bad_request", "a command line has no args."},
		{ann, `"shell":"a\u0000b"`, 501, "arguments", "A command line cannot hold a NUL."},
		{ann, `"shell":"` + strings.Repeat("x", maxArguments+1) + `"`, 501, "arguments", "A command line has at most 65536 bytes."},
		{ann, `"shell":"true","command":"say"`, 501, "bad_request", "exec needs *"},
		{ann, `"tty":true`, 501, "bad_request", "exec needs *"},
	} {
		if r := e.c.run(e.fields); !r.is(e.code, e.reason, -1, "") || !wildcard(e.text, r.Text) || r.ran || len(r.out)+len(r.err) > 0 {
			t.Errorf("exec %.100s: %s; want %d %s %q", e.fields, r, e.code, e.reason, e.text)
		}
	}
	// A line as long as may be runs; the kernel's own limit for one argument is larger.
	if r := ann.runSh("echo " + strings.Repeat("x", maxArguments-5)); len(r.out) != maxArguments-4 {
		t.Errorf("a long line: %s", r)
	}
	if n := strings.Count(b.log.String(), "msg=command "); n != 1 {
		t.Errorf("%d commands have run by the log", n)
	}
}

// What is typed and printed is as good as a password: not in clear from off the machine.
func TestExecInClearText(t *testing.T) {
	off, here := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.1")
	for _, e := range []struct {
		user  string
		peer  netip.Addr
		tls   bool
		taken bool
	}{
		{"", off, false, false},
		{"", off, true, true},
		{"tls = \"optional\"\n", off, false, true},
		{"", testPeer, false, true},
	} {
		b := newFTPBox(t, frameCommands+"tls.require = \"none\"\n", e.user+frameUser)
		c := b.dialFrom(t, e.peer, here, "control")
		c.want("220 *")
		if e.tls {
			c.cmd("AUTH TLS", "234 *")
			c.startTLS(clientTLS())
		}
		c.cmd("USER ann", "331 *")
		c.cmd("PASS secret", "230 *")
		if e.taken {
			c.cmd("SITE EXEC failing", "200-*", " on stderr", "200 Ended with exit status 3.")
		} else {
			c.cmd("SITE EXEC failing", "534 Commands are not run in clear text from there; use TLS.")
		}
		f := c.execFrames()
		for _, fields := range []string{`"shell":"exit 3"`, `"command":"failing"`} {
			r := f.run(fields)
			if e.taken && !r.is(226, "exited", 3, "") || !e.taken && !r.is(534, "tls_required", -1, "") {
				t.Errorf("%v, TLS %v, %q: %s", e.peer, e.tls, e.user, r)
			}
		}
	}
}

// "landlock" means it: where the kernel has none, nothing is run.
func TestExecWithoutLandlock(t *testing.T) {
	for _, mode := range []string{"landlock", "best-effort", "off"} {
		b := newFTPBox(t, "exec.sandbox = \""+mode+"\"\n"+frameCommands, frameUser)
		b.srv.launcher.abi = func() int { return 0 }
		c := b.dial(t).login()
		if mode == "landlock" {
			c.cmd("SITE EXEC failing", "550 *Landlock*")
		} else {
			c.cmd("SITE EXEC failing", "200-*", " on stderr", "200 *")
		}
		r := c.execFrames().runSh("exit 3")
		if mode == "landlock" && (!r.is(550, "start_failed", -1, "") && !r.is(550, "sandbox", -1, "") || !strings.Contains(r.Text, `exec.sandbox = "best-effort"`)) ||
			mode != "landlock" && !r.is(226, "exited", 3, "") {
			t.Errorf("%s: %s", mode, r)
		}
	}
}

// --- what a command finds, and leaves behind ---

func TestExecEnvironment(t *testing.T) {
	b := newExecBox(t, "", "")
	// Whatever is in berth's own environment stays there.
	t.Setenv("LD_PRELOAD", "/tmp/x.so")
	t.Setenv("NOTIFY_SOCKET", "/tmp/x")
	for _, e := range []struct{ way, proto, addr string }{{"plain", "frames", "127.0.0.1:*"}, {"explicit TLS", "frames", "127.0.0.1:*"}, {"local", "local", ""}} {
		c := b.enter(t, e.way)
		c.frame(frameRequest, `{"do":"mkdir","path":"/sub dir"}`)
		c.take()
		c.frame(frameRequest, `{"do":"cd","path":"/sub dir"}`)
		c.take()
		want := []string{"BERTH_ADDRESS=" + strings.TrimSuffix(e.addr, ":*") + "*", "BERTH_PROTOCOL=" + e.proto, "BERTH_SESSION=*", "BERTH_USER=ann",
			"HOME=" + b.home, "LANG=C.UTF-8", "LOGNAME=ann", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
			"PWD=" + b.home + "/sub dir", "SHELL=/bin/sh", "TMPDIR=" + b.home, "USER=ann"}
		for _, fields := range []string{`"command":"env"`, `"shell":"exec env"`, `"shell":"exec env","tty":true,"term":"linux"`, `"shell":"exec env","tty":true,"term":"../x"`} {
			want := want
			if strings.Contains(fields, "tty") {
				want = slices.Concat(want[:10], []string{"TERM=" + map[bool]string{true: "linux", false: "xterm"}[strings.Contains(fields, "linux")]}, want[10:])
			}
			got := strings.Fields(strings.ReplaceAll(string(c.run(fields).out), "sub dir", "sub_dir"))
			got = slices.DeleteFunc(got, func(v string) bool { return v == "OLDPWD" || strings.HasPrefix(v, "_=") }) // the shell's own
			slices.Sort(got)
			for i := range want {
				want[i] = strings.ReplaceAll(want[i], "sub dir", "sub_dir")
			}
			if !slices.EqualFunc(want, got, wildcard) {
				t.Errorf("%s, %s:\n%s\nwant\n%s", e.way, fields, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
	}
	site := b.dialReal(t, b.addrs[0]).login()
	site.send("SITE EXEC env\r\n")
	if body, _ := site.siteReply(); len(body) != 12 || !slices.Contains(body, "BERTH_PROTOCOL=ftp") || !slices.Contains(body, "PWD="+b.home) {
		t.Errorf("SITE EXEC env: %q", body)
	}
}

// The shell of a command line is the user's.
func TestExecShellPath(t *testing.T) {
	b := newExecBox(t, "", "shell_path = \"/usr/bin/printf\"\n") // printf -c LINE
	c := b.enter(t, "plain")
	if r := c.runSh("x"); !r.is(226, "exited", 0, "") || string(r.out) != "-c" {
		t.Errorf("printf -c x: %s", r)
	}
}

func TestExecInAShare(t *testing.T) {
	public, fixed := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(fixed, "f"), []byte("fixed"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := newExecBox(t, "", fmt.Sprintf("shares = { public = { path = %q, write = true }, fixed = { path = %q } }\n", public, fixed))
	c := b.enter(t, "plain")
	for _, e := range []struct{ line, out, err string }{
		{"cd public", "", ""},
		{"pwd; mkdir d; echo x > d/y", public + "\n", ""},
		{"cd d", "", ""},
		{"pwd; cat y", public + "/d\nx\n", ""},
		{"cd /fixed", "", ""},
		{"cat f", "fixed", ""},
		{"cd ~", "", ""},
		{"pwd", b.home + "\n", ""},
		{"cd " + b.home, "", ""}, // as the shell shows it
		{"cd " + public, "", "cd: *\n"},
	} {
		if r := c.runSh(e.line); string(r.out) != e.out || !wildcard(e.err, string(r.err)) {
			t.Errorf("%s: %s; want %q, %q", e.line, r, e.out, e.err)
		}
	}
	if sandboxProblem("landlock") == nil {
		c.runSh("cd fixed")
		if r := c.runSh("echo x > g || echo x > f"); len(r.err) == 0 {
			t.Errorf("a share that is only to be read was written: %s", r)
		}
	}
	// A directory that is gone, or is no directory any more, starts nothing.
	c.runSh("cd /")
	c.runSh("mkdir gone")
	c.runSh("cd gone")
	os.Remove(filepath.Join(b.home, "gone"))
	if r := c.runSh("echo here"); !r.is(550, "start_failed", -1, "") && !r.is(550, "start_failed", 126, "") || len(r.out) > 0 {
		t.Errorf("in a directory that is gone: %s", r)
	}
	if err := os.Symlink("/etc", filepath.Join(b.home, "gone")); err != nil {
		t.Fatal(err)
	}
	if r := c.runSh("pwd"); r.Code != 550 || len(r.out) > 0 {
		t.Errorf("in a directory that has become a way out: %s", r)
	}
}

// What a command has done in the home is counted anew, and all of it is on the books.
func TestExecIsCounted(t *testing.T) {
	b := newExecBox(t, "", "quota_bytes = \"1MiB\"\n")
	c := b.enter(t, "plain")
	r := c.runSh("head -c 70000 /dev/zero >a; head -c 5 /dev/zero >b; echo done; exit 9")
	if !r.is(226, "exited", 9, "") {
		t.Fatal(r)
	}
	b.srv.house.mu.Lock()
	at := b.srv.house.due["ann"]
	b.srv.house.mu.Unlock()
	if wait := time.Until(at); at.IsZero() || wait > hookRecount {
		t.Errorf("the home is counted anew in %v; want %v at most", wait, hookRecount)
	}
	b.srv.house.attend("ann", time.Now()) // that is time enough
	waitUntil(t, "the ledger has seen it", func() bool {
		c.frame(frameRequest, `{"do":"usage"}`)
		_, p, _ := c.take()
		return bytes.Contains(p, []byte(`"bytes":70005,"files":2`))
	})
	if !slices.ContainsFunc(strings.Split(b.log.String(), "\n"), func(l string) bool {
		return wildcard(`* msg=command session=* user=ann addr=127.0.0.1* proto=frames command=shell args="/bin/sh -c head -c 70000 *" dir=/ tty=false dur=* result=exited exit=9 bytes=5 cpu=*`, l)
	}) {
		t.Errorf("the log:\n%s", b.log)
	}
	c.run(`"command":"failing"`)
	c.run(`"command":"none"`)
	c.run(`"command":"others"`)
	for _, e := range []struct {
		command, result string
		n               float64
	}{{"shell", "exited", 1}, {"failing", "exited", 1}, {"none", "start_failed", 1}, {"others", "exited", 0}} {
		if got := b.metric(t, "berth_commands_total", e.command, e.result); got != e.n {
			t.Errorf("berth_commands_total of %s, %s: %v; want %v", e.command, e.result, got, e.n)
		}
	}
	// No file grows past the quota.
	if r := c.runSh("trap '' XFSZ; head -c 2000000 /dev/zero >c"); len(r.err) == 0 {
		t.Errorf("a file larger than the quota: %s", r)
	}
	if info, err := os.Stat(filepath.Join(b.home, "c")); err != nil || info.Size() > 1<<20 {
		t.Errorf("%v, %v", info, err)
	}
}

// --- a daemon of its own ---

const daemonCommands = `exec.kill_after = "300ms"
exec.output = "0"
log.format = "json"
commands.env = { run = ["/usr/bin/env"] }
commands.none = { run = ["/no/such/program"] }
commands.data = { run = ["/etc/passwd"] }
commands.say = { run = ["/usr/bin/printf", "%s", "{word}"], args = { word = "(?s).*" } }
commands.brief = { run = ["/bin/sh", "-c", "echo begun; sleep {n}"], args = { n = "[0-9.]+" }, timeout = "500ms" }
commands.screen = { run = ["/bin/sh", "-c", "stty size"], tty = true }
commands.failing = { run = ["/bin/sh", "-c", "echo on stderr >&2; exit 3"] }
commands.others = { run = ["/bin/true"] }
listen = { control = ["127.0.0.1:0"], datagram = [], http = [], local = [] }
`

// execDaemon is a berth of its own with the user ann, who may run anything.
func execDaemon(t *testing.T, more string) (*process, *ftpBox) {
	t.Helper()
	file, b := writeConfig(t, more+daemonCommands)
	b.user(t, "ann", frameUser)
	return serveBerth(t, file, nil), b
}

func (p *process) exec() *execClient { return p.dial("control").login().execFrames() }

// A client that does not read stops the program that writes, and costs the daemon no
// memory, however much there is to come.
func TestExecSlowReader(t *testing.T) {
	const (
		lines  = 13_000_000
		size   = 105_888_897
		most   = 24 << 20 // that the kernel holds in sockets and pipes
		growth = 16 << 20
	)
	p, _ := execDaemon(t, "")
	c := p.exec()
	c.runSh("seq 100000")
	before := memoryPeak(t, p.cmd.Process.Pid)
	c.sh("exec seq 1 "+strconv.Itoa(lines), "")
	c.opened()
	var pid int
	waitUntil(t, "seq runs", func() bool {
		for _, n := range marked(strconv.Itoa(lines)) {
			if args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", n)); bytes.HasPrefix(args, []byte("seq\x00")) {
				pid = n
			}
		}
		return pid != 0
	})
	// It has stopped when it has written the same for a while.
	var wrote int64
	since := time.Now()
	waitUntil(t, "it is stopped", func() bool {
		if n := bytesWritten(t, pid); n != wrote {
			wrote, since = n, time.Now()
		}
		return time.Since(since) > 300*time.Millisecond
	})
	if wrote == 0 || wrote > most {
		t.Errorf("it could write %d bytes for a client that reads nothing", wrote)
	}
	sum := sha256.New()
	r, n := &execResult{}, int64(0)
	c.resultTo(r, func(_ frameType, b []byte) {
		n += int64(len(b))
		sum.Write(b)
	})
	want := sha256.New()
	writeLines(want, lines)
	if n != size || r.Bytes != size || !bytes.Equal(sum.Sum(nil), want.Sum(nil)) || !r.is(226, "exited", 0, "") {
		t.Errorf("%d bytes came, %d were told, not in order: %s", n, r.Bytes, r)
	}
	if after := memoryPeak(t, p.cmd.Process.Pid); after > before+growth {
		t.Errorf("the daemon's memory grew from %d to %d KiB", before>>10, after>>10)
	}
	p.signal(syscall.SIGTERM)
	p.ended(exitOK)
}

// memoryPeak is the most memory that a process has had (VmHWM), in bytes.
func memoryPeak(t *testing.T, pid int) int64 {
	t.Helper()
	return procField(t, pid, "status", "VmHWM:") << 10
}

// bytesWritten is what a process has given to write(2).
func bytesWritten(t *testing.T, pid int) int64 {
	t.Helper()
	return procField(t, pid, "io", "wchar:")
}

func procField(t *testing.T, pid int, file, field string) (n int64) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), field)
	if _, err := fmt.Sscan(rest, &n); !ok || err != nil {
		t.Fatalf("%s of process %d: %v", field, pid, err)
	}
	return n
}
