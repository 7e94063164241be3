package main

// berth runner as a process, asked by a daemon that is another, and by strangers: the
// same commands as in commands_frames_test.go, and what can go wrong between the two.

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// runnerBox is a daemon whose commands run in a runner.
type runnerBox struct {
	*ftpBox
	t              *testing.T
	file, socket   string
	runner, daemon *process
}

func newRunnerBox(t *testing.T, more string) *runnerBox {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth") // t's own name may be too long for a socket's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &runnerBox{t: t, socket: filepath.Join(dir, "runner.sock")}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("exec.runner = \"unix:%s\"\n%s", r.socket, strings.Replace(daemonCommands, `exec.output = "0"`, `exec.output = "1MiB"`, 1))
	r.file, r.ftpBox = writeConfig(t, more+config)
	r.user(t, "ann", frameUser+"on_upload = \"hook\"\n")
	return r
}

// start starts the runner and waits until it serves.
func (r *runnerBox) start() *process {
	r.t.Helper()
	r.runner = startBerth(r.t, nil, nil, "runner", "--config", r.file)
	r.runner.logged("serving")
	return r.runner
}

// serve starts the daemon.
func (r *runnerBox) serve() *process {
	r.t.Helper()
	r.daemon = serveBerth(r.t, r.file, nil)
	return r.daemon
}

// drainLog reads a process's log, which would hold it up when nobody did.
func drainLog(p *process) {
	go func() {
		for range p.lines {
		}
	}()
}

const runnerHook = "commands.hook = { run = [\"/bin/sh\", \"-c\", \"echo $BERTH_PATH $PPID >hooked\"] }\n"

func TestRunner(t *testing.T) {
	r := newRunnerBox(t, runnerHook)
	r.start()
	drainLog(r.runner)
	p := r.serve()
	drainLog(p)
	c := p.exec()
	playExec(t, c)

	// It is the runner whose children they are.
	got := c.runSh("echo $PPID")
	if strings.TrimSpace(string(got.out)) != fmt.Sprint(r.runner.cmd.Process.Pid) {
		t.Errorf("a command's parent is %s; the runner is %d", got, r.runner.cmd.Process.Pid)
	}
	// Also for what is run after an upload.
	f := p.dial("control").login()
	f.store("STOR up.txt", "x")
	want := fmt.Sprintf("/up.txt %d\n", r.runner.cmd.Process.Pid)
	waitUntil(t, "the upload's command has run", func() bool {
		text, _ := os.ReadFile(filepath.Join(r.home, "hooked"))
		return string(text) == want
	})
	f.cmd("SITE EXEC failing", "200-*", " on stderr", "200 Ended with exit status 3.")

	for _, leave := range []func(c *execClient){
		func(c *execClient) { c.conn.Close() },
		func(c *execClient) { c.frame(frameCancel, "") },
	} {
		c := p.exec()
		mark := c.plant()
		leave(c)
		wantUnmarked(t, mark, execGone+2*goneLook)
	}
}

// Restarts of the runner: between two commands nobody notices; one that runs gets an
// answer; without a runner there is one too, with the way out.
func TestRunnerComesAndGoes(t *testing.T) {
	r := newRunnerBox(t, runnerHook)
	p := r.serve()
	drainLog(p)
	c := p.exec()
	missing := func(when string) {
		t.Helper()
		if got := c.runSh("true"); got.Code != 550 || got.Reason != "start_failed" || got.ran || !strings.Contains(got.Text, "berth-runner.socket") {
			t.Errorf("%s: %s", when, got)
		}
	}
	missing("before there is a runner")
	r.start()
	if got := c.runSh("echo 1"); string(got.out) != "1\n" {
		t.Errorf("with a runner: %s", got)
	}
	r.runner.signal(syscall.SIGTERM)
	r.runner.ended(exitOK)
	missing("after the runner has ended")
	r.start()
	if got := c.runSh("echo 2"); string(got.out) != "2\n" {
		t.Errorf("with another runner: %s", got)
	}

	// SIGTERM ends its commands in order.
	mark := c.plant()
	r.runner.signal(syscall.SIGTERM)
	if got := c.result(); got.Code/100 != 2 && got.Code/100 != 4 || got.Exit != nil && *got.Exit == 0 {
		t.Errorf("the runner has ended in mid-command: %s", got)
	}
	r.runner.ended(exitOK)
	wantUnmarked(t, mark, execGone)

	// One that is killed leaves its socket, and takes the leader along.
	r.start()
	mark = newMark()
	c.sh("echo up; exec sleep "+mark, "")
	c.until("up\n")
	r.runner.signal(syscall.SIGKILL)
	if got := c.result(); !got.is(226, "signalled", -1, "KILL") {
		t.Errorf("the runner was killed in mid-command: %s", got)
	}
	wantUnmarked(t, mark, execGone)
	missing("after the runner was killed")
	r.start()
	if got := c.runSh("echo 3"); string(got.out) != "3\n" {
		t.Errorf("with a third runner: %s", got)
	}
}

// askRunner sends the runner a request and returns its answer.
func askRunner(t *testing.T, socket string, payload []byte) (a runnerAnswer) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(replyTime))
	conn.Write(payload)
	in := bufio.NewReader(conn)
	for {
		kind, p, err := readFrame(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if kind != frameAnswer {
			continue
		}
		if err := json.Unmarshal(p, &a); err != nil {
			t.Fatal(err)
		}
		if a.Code/100 != 1 {
			return a
		}
	}
}

func runnerProgram(dir string, box *sandbox, argv ...string) []byte {
	return appendFrame(nil, frameRequest, encodeJSON(runnerRequest{"run", program{
		Argv: rawTexts(argv), Root: rawText(dir), Dir: ".", Sandbox: box, Timeout: time.Minute, Grace: time.Second}}))
}

func TestRunnerTakesOnlyItsRequest(t *testing.T) {
	r := newRunnerBox(t, runnerHook)
	r.start()
	box := &sandbox{BestEffort: true}
	for _, e := range []struct {
		name    string
		payload []byte
		code    int
		text    string
	}{
		{"a program", runnerProgram(r.home, box, "/bin/true"), codeDataClosed, "ended"},
		{"one without a sandbox", runnerProgram(r.home, nil, "/bin/true"), codeDenied, "the runner runs nothing without a sandbox; *"},
		{"no program", runnerProgram(r.home, box), codeBadArgument, "*"},
		{"another request", appendFrame(nil, frameRequest, []byte(`{"do":"login"}`)), codeBadArgument, "*"},
		{"no JSON", appendFrame(nil, frameRequest, []byte(`{`)), codeBadArgument, "*"},
		{"another frame", appendFrame(nil, frameData, []byte("x")), codeBadArgument, "*"},
		{"a frame that is too long", []byte{0xff, 0xff, 0xff, 0xff, 'R'}, codeBadArgument, "*"},
	} {
		if a := askRunner(t, r.socket, e.payload); a.Code != e.code || !wildcard(e.text, a.Text) {
			t.Errorf("%s: %+v; want %d %s", e.name, a, e.code, e.text)
		}
	}
}

// strangerAsks is the environment variable by which this test is a stranger who asks the
// runner at that socket.
const strangerAsks = "BERTH_TEST_STRANGER_ASKS"

func TestRunnerRefusesStrangers(t *testing.T) {
	if socket := os.Getenv(strangerAsks); socket != "" {
		fmt.Println("answer", askRunner(t, socket, runnerProgram("/", &sandbox{BestEffort: true}, "/bin/true")).Code)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	r := newRunnerBox(t, runnerHook)
	r.start()
	self := filepath.Join(filepath.Dir(r.socket), "test") // where nobody may run it
	text, err := os.ReadFile(os.Args[0])
	if err == nil {
		err = os.WriteFile(self, text, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	ask := func(uid uint32) string {
		cmd := exec.Command(self, "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), strangerAsks+"="+r.socket)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	if out := ask(65534); !strings.HasPrefix(out, fmt.Sprintf("answer %d\n", codeDenied)) {
		t.Errorf("a stranger was told %s", out)
	}
	r.runner.logged("refused")
	if out := ask(0); !strings.HasPrefix(out, fmt.Sprintf("answer %d\n", codeDataClosed)) {
		t.Errorf("root was told %s", out)
	}
	// The daemon's user is who owns the state directory.
	if err := os.Chown(filepath.Join(r.dir, "state"), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if out := ask(65534); !strings.HasPrefix(out, fmt.Sprintf("answer %d\n", codeDataClosed)) {
		t.Errorf("the daemon's user was told %s", out)
	}
}

// What the runner runs has its uid, and must not choose what else it runs.
func TestRunnerRefusesItsOwnCommands(t *testing.T) {
	python, err := exec.LookPath("/usr/bin/python3")
	if err != nil {
		t.Skip("no python3 of the system's")
	}
	r := newRunnerBox(t, runnerHook)
	r.start()
	p := r.serve()
	c := p.exec()
	request := runnerProgram(r.home, &sandbox{BestEffort: true}, "/usr/bin/touch", filepath.Join(r.home, "escaped"))
	r.put(t, "request", string(request))
	r.put(t, "ask.py", fmt.Sprintf(`import socket
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(%q)
    s.sendall(open("request", "rb").read())
    print(s.recv(1000))
except OSError as e:
    print("no:", e)
`, r.socket))
	for _, line := range []string{python + " ask.py", "setsid -w " + python + " ask.py", "(env -i " + python + " ask.py)"} {
		got := c.runSh(line)
		if !bytes.HasPrefix(got.out, []byte("no:")) && !bytes.Contains(got.out, []byte(`"code":550`)) {
			t.Errorf("%s: %s", line, got)
		}
	}
	r.missing(t, "escaped")
}

// As systemd starts it: the socket is there before the runner is.
func TestRunnerBySocketActivation(t *testing.T) {
	r := newRunnerBox(t, runnerHook)
	ln, err := net.Listen("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := r.serve()
	c := p.exec()
	c.sh("echo 1", "") // waits in the socket
	r.runner = startBerth(t, []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=runner"}, []*os.File{f}, "runner", "--config", r.file)
	if got := c.result(); string(got.out) != "1\n" {
		t.Errorf("a runner with an inherited socket: %s", got)
	}
	r.runner.signal(syscall.SIGTERM)
	r.runner.ended(exitOK)
	// A restart refuses nobody.
	c.sh("echo 2", "")
	r.runner = startBerth(t, []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=runner"}, []*os.File{f}, "runner", "--config", r.file)
	if got := c.result(); string(got.out) != "2\n" {
		t.Errorf("after a restart: %s", got)
	}

	// A socket by another name, or of another kind, is not taken.
	tcp, _ := listenerFile(t, "tcp")
	for _, e := range []struct {
		names string
		file  *os.File
		says  string
	}{{"control", f, "FileDescriptorName= of its unit must be runner"}, {"runner", tcp, "that name needs a unix stream socket"}} {
		wrong := startBerth(t, []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=" + e.names}, []*os.File{e.file}, "runner", "--config", r.file)
		wrong.ended(exitFailed)
		if !strings.Contains(wrong.rest.String(), e.says) {
			t.Errorf("%s: %s", e.names, wrong.rest.String())
		}
	}
	r.configure(t, "")
	none := startBerth(t, nil, nil, "runner", "--config", r.file)
	none.ended(exitFailed)
	if !strings.Contains(none.rest.String(), "unix:/run/berth/runner.sock") {
		t.Errorf("without a socket: %s", none.rest.String())
	}
}
