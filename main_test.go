package main

// The program from its command line: run in this process where a test looks inside, and
// as a process of its own where signals and inherited sockets matter. Sockets are real
// and on loopback. The real client programs are in clients_test.go.

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asBerth makes the test binary be berth: see TestMain.
const asBerth = "BERTH_TEST_AS_BERTH"

// Some tests take away from a thread, for good, what it may do, and so end it. The process's first thread can not
// be ended: it would stay, and be what /proc/self tells of this process. It is kept from them: locked in an init
// function, the main goroutine has it for as long as the tests run.
func init() {
	if os.Getenv(asBerth) == "" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(asBerth) != "" {
		if id := os.Getenv(testBootID); id != "" {
			pretendBoot(id)
		}
		if os.Getenv("LISTEN_FDS") != "" {
			os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())) // as systemd does it, which knows the pid
		}
		main()
		return
	}
	os.Exit(m.Run())
}

// testBootID is the environment variable with which a berth that a test starts
// believes in another boot of the machine, as after a loss of power.
const testBootID = "BERTH_TEST_BOOT_ID"

// pretendBoot runs this program again in a mount namespace whose kernel tells
// another boot id. Needs root.
func pretendBoot(id string) {
	file := filepath.Join(os.TempDir(), "berth-boot-"+strconv.Itoa(os.Getpid()))
	err := os.WriteFile(file, []byte(id+"\n"), 0o600)
	if err == nil {
		os.Unsetenv(testBootID)
		script := `mount --bind "$0" /proc/sys/kernel/random/boot_id && rm "$0" && exec "$@"`
		err = syscall.Exec("/usr/bin/unshare", append([]string{"unshare", "--mount", "sh", "-c", script, file}, os.Args...), os.Environ())
	}
	panic(err)
}

// cli runs berth in this process.
func cli(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs syncBuffer
	code = run(args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// --- words that print and end ---

func TestVersion(t *testing.T) {
	for _, word := range []string{"version", "--version", "-version"} {
		code, out, errs := cli(t, word)
		if code != exitOK || !strings.HasPrefix(out, "berth ") || !strings.Contains(out, runtime.GOOS+"/"+runtime.GOARCH) || errs != "" {
			t.Errorf("%s: %d, %q, %q", word, code, out, errs)
		}
	}
}

func TestHelpEverywhere(t *testing.T) {
	for _, word := range []string{"-h", "--help", "-help", "help"} {
		code, out, errs := cli(t, word)
		if code != exitOK || !strings.Contains(out, "berth demo") || errs != "" {
			t.Errorf("%s: %d, %q, %q", word, code, out, errs)
		}
	}
	for _, v := range verbs() {
		for _, word := range []string{"-h", "--help", "-help"} {
			code, out, errs := cli(t, v.name, word)
			if code != exitOK || !strings.Contains(strings.ToLower(out), "usage: berth "+v.name) || errs != "" {
				t.Errorf("%s %s: %d, %q, %q", v.name, word, code, out, errs)
			}
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, "Usage: berth COMMAND"},
		{[]string{"frobnicate"}, `berth: there is no command "frobnicate"; berth help lists them`},
		{[]string{"srve"}, `berth: there is no command "srve"; did you mean serve?`},
		{[]string{"serve", "--nosuch"}, "berth serve: there is no option --nosuch; berth help serve tells more"},
		{[]string{"serve", "--confg", "x"}, "berth serve: there is no option --confg, is it --config?"},
		{[]string{"serve", "x"}, `berth serve: unexpected argument "x"`},
		{[]string{"check", "--config"}, "berth check: --config needs a value: --config FILE"},
		{[]string{"check", "x"}, `unexpected argument "x"`},
		{[]string{"version", "x"}, `unexpected argument "x"`},
		{[]string{"health", "x"}, `unexpected argument "x"`},
		{[]string{"demo", "a", "b"}, `unexpected argument "b"`},
		{[]string{"demo", "--nosuch"}, "there is no option --nosuch"},
	} {
		code, out, errs := cli(t, test.args...)
		if code != exitUsage || out != "" || !strings.Contains(errs, test.want) {
			t.Errorf("berth %q: %d, %q, %q; want %d and %q", test.args, code, out, errs, exitUsage, test.want)
		}
	}
}

// writeConfig makes a berth.toml of its own directory, with the user ann.
func writeConfig(t *testing.T, more string) (file string, b *ftpBox) {
	t.Helper()
	dir := t.TempDir()
	b = &ftpBox{dir: dir, home: filepath.Join(dir, "home")}
	if err := os.Mkdir(b.home, 0o755); err != nil {
		t.Fatal(err)
	}
	b.writeTLS(t, filepath.Join(dir, "state"))
	b.user(t, "ann", "")
	file = filepath.Join(dir, "berth.toml")
	b.configure(t, more)
	return file, b
}

func (b *ftpBox) configure(t *testing.T, more string) {
	t.Helper()
	text := fmt.Sprintf("%s\nserver.state_dir = %q\nserver.users_dir = %q\n", more, filepath.Join(b.dir, "state"), filepath.Join(b.dir, "users.d"))
	if err := os.WriteFile(filepath.Join(b.dir, "berth.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCheckAndServeRefuseMistakes(t *testing.T) {
	file, b := writeConfig(t, "limits.idle = 10\nserver.nmae = \"x\"\nlisten.control = [\"127.0.0.1:0\"]")
	for _, word := range []string{"check", "serve"} {
		code, out, errs := cli(t, word, "--config", file)
		if code != exitFailed || out != "" || !strings.Contains(errs, file+":1:") || !strings.Contains(errs, file+":2:") || !strings.Contains(errs, `"name"`) {
			t.Errorf("%s: %d, %q, %q", word, code, out, errs)
		}
	}
	b.configure(t, "")
	code, out, errs := cli(t, "check", "--config", file)
	if code != exitOK || !strings.Contains(out, "1 user") || errs != "" {
		t.Errorf("check: %d, %q, %q", code, out, errs)
	}
	user := filepath.Join(b.dir, "users.d", "bob.toml")
	if err := os.WriteFile(user, []byte("home = \"/srv/bob\"\npermissions = [\"reed\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"check", "serve"} {
		code, out, errs = cli(t, word, "--config", file)
		if code != exitFailed || out != "" || !strings.Contains(errs, user+":2:") || !strings.Contains(errs, `"read"`) {
			t.Errorf("%s: %d, %q, %q", word, code, out, errs)
		}
	}
	code, _, errs = cli(t, "serve", "--config", filepath.Join(b.dir, "nosuch.toml"))
	if code != exitFailed || !strings.Contains(errs, "nosuch.toml") {
		t.Errorf("no file: %d, %q", code, errs)
	}
}

func TestCheckTellsOfRotationWithoutQuota(t *testing.T) {
	file, b := writeConfig(t, "")
	b.user(t, "ann", "when_full = \"rotate\"\n")
	if code, out, _ := cli(t, "check", "--config", file); code != exitOK || !strings.Contains(out, "note: user ann: when_full") || !strings.Contains(out, "note: commands run with ") {
		t.Errorf("%d, %q", code, out)
	}
	b.user(t, "ann", "when_full = \"rotate\"\nquota_files = 1\n")
	if code, out, _ := cli(t, "check", "--config", file); code != exitOK || strings.Contains(out, "note: user") {
		t.Errorf("%d, %q", code, out)
	}
}

// TestCheckTellsWhatCommandsCanRead: a home below a tree that every command may read is
// open to all users' commands, which nobody expects.
func TestCheckTellsWhatCommandsCanRead(t *testing.T) {
	file, b := writeConfig(t, "commands.uptime.run = [\"/usr/bin/uptime\"]\n")
	b.user(t, "ann", "home = \"/opt/files/ann\"\n")
	if code, out, _ := cli(t, "check", "--config", file); code != exitOK || strings.Contains(out, "commands can read") {
		t.Errorf("nobody has commands: %d, %q", code, out)
	}
	b.user(t, "bob", "commands = [\"uptime\"]\n")
	if code, out, _ := cli(t, "check", "--config", file); code != exitOK || strings.Count(out, "commands can read") != 1 ||
		!strings.Contains(out, "commands can read /opt/files/ann (the home of ann), because they can read /opt;") {
		t.Errorf("%d, %q", code, out)
	}
}

func TestServeRefusesSocketsItCannotHave(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file, b := writeConfig(t, fmt.Sprintf("listen = { control = [%q], datagram = [], http = [], local = [] }", taken.Addr()))
	if code, _, errs := cli(t, "serve", "--config", file); code != exitFailed || !strings.Contains(errs, "listen.control") || !strings.Contains(errs, "in use") {
		t.Errorf("port in use: %d, %q", code, errs)
	}
	if code, _, errs := cli(t, "demo", "--control", taken.Addr().String(), "--datagram", "127.0.0.1:0", "--http", "127.0.0.1:0", b.home); code != exitFailed || !strings.Contains(errs, "--control") {
		t.Errorf("demo, port in use: %d, %q", code, errs)
	}
	// A file that is no socket is not removed; a socket that answers is not taken.
	for name, make := range map[string]func(path string) error{
		"no socket": func(path string) error { return os.WriteFile(path, []byte("precious"), 0o600) },
		"answers": func(path string) error {
			ln, err := net.Listen("unix", path)
			if err == nil {
				t.Cleanup(func() { ln.Close() })
			}
			return err
		},
	} {
		path := filepath.Join(b.dir, strings.ReplaceAll(name, " ", "")+".sock")
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		b.configure(t, fmt.Sprintf("listen = { control = [\"127.0.0.1:0\"], datagram = [], http = [], local = [%q] }", path))
		if code, _, errs := cli(t, "serve", "--config", file); code != exitFailed || !strings.Contains(errs, "listen.local") || !strings.Contains(errs, path) {
			t.Errorf("%s: %d, %q", name, code, errs)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s: it is gone: %v", name, err)
		}
	}
}

// --- demo ---

var readyLine = regexp.MustCompile(`^ready control=(127\.0\.0\.1:\d+) datagram=(127\.0\.0\.1:\d+) http=(127\.0\.0\.1:\d+) user=demo password=(\S+) dir=(.+)$`)

// demoRun is a berth demo in this process.
type demoRun struct {
	control, datagram, http, password, dir string
	code                                   chan int
	errs                                   *syncBuffer
}

func startDemo(t *testing.T, args ...string) *demoRun {
	t.Helper()
	d := &demoRun{code: make(chan int, 1), errs: &syncBuffer{}}
	r, w := io.Pipe()
	go func() {
		code := run(append([]string{"demo", "--control", "127.0.0.1:0", "--datagram", "127.0.0.1:0", "--http", "127.0.0.1:0"}, args...), strings.NewReader(""), w, d.errs)
		w.Close()
		d.code <- code
	}()
	lines := bufio.NewReader(r)
	line, err := lines.ReadString('\n')
	if err != nil {
		t.Fatalf("no ready line: %v; %s", err, d.errs)
	}
	m := readyLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
	if m == nil {
		t.Fatalf("ready line %q", line)
	}
	d.control, d.datagram, d.http, d.password, d.dir = m[1], m[2], m[3], m[4], m[5]
	go io.Copy(io.Discard, lines)
	return d
}

// login connects to the demo, with TLS if cfg is not nil.
func (d *demoRun) login(t *testing.T, cfg *tls.Config) *ftpClient {
	t.Helper()
	conn, err := net.Dial("tcp", d.control)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &ftpClient{t: t, host: "127.0.0.1", bare: conn, conn: conn, r: bufio.NewReader(conn)}
	c.want("220 *")
	if cfg != nil {
		c.cmd("AUTH TLS", "234 *")
		c.startTLS(cfg)
		c.cmd("PBSZ 0", "200 *")
		c.cmd("PROT P", "200 *")
		c.private = cfg
	}
	c.cmd("USER demo", "331 *")
	c.cmd("PASS "+d.password, "230 *")
	return c
}

// interrupt is Ctrl-C. The demo's own handler is there once it is ready.
func (d *demoRun) interrupt(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case code := <-d.code:
		if code != exitOK {
			t.Errorf("exit code %d after Ctrl-C; %s", code, d.errs)
		}
	case <-time.After(replyTime):
		t.Fatal("Ctrl-C does not end the demo")
	}
}

func TestDemo(t *testing.T) {
	http.DefaultClient.CloseIdleConnections()
	// The signal package's goroutine stays for good; it is not the demo's.
	first := make(chan os.Signal, 1)
	signal.Notify(first, syscall.SIGINT)
	signal.Stop(first)
	before := runtime.NumGoroutine()
	dir := filepath.Join(t.TempDir(), "files here")
	passwordFile := filepath.Join(t.TempDir(), "password")
	d := startDemo(t, "--password-file", passwordFile, dir)
	if d.dir != dir {
		t.Errorf("dir=%q; want %q", d.dir, dir)
	}
	if text, err := os.ReadFile(passwordFile); err != nil || strings.TrimSpace(string(text)) != d.password {
		t.Errorf("password file %q, %v; want %q", text, err, d.password)
	}
	c := d.login(t, nil)
	if got := c.store("STOR kept.txt", "kept"); !strings.HasPrefix(got, "226") {
		t.Fatal(got)
	}
	if got := c.fetch("NLST"); got != "kept.txt\r\n" {
		t.Errorf("the demo shows %q", got)
	}
	for _, path := range []string{".berth-state/tls/key.pem", "/.berth-state/users.d/demo.toml"} {
		c.cmd("SIZE "+path, "553 *")
	}
	u, err := net.Dial("udp", d.datagram)
	if err != nil {
		t.Fatal(err)
	}
	u.SetDeadline(time.Now().Add(replyTime))
	io.WriteString(u, "upper hello")
	var answer [100]byte
	if n, err := u.Read(answer[:]); err != nil || string(answer[:n]) != "HELLO" {
		t.Errorf("datagram: %q, %v", answer[:n], err)
	}
	u.Close()
	transport := &http.Transport{DisableKeepAlives: true}
	for path, want := range map[string]string{"/healthz": "", "/readyz": "", "/metrics": "berth_sessions", "/": "<h2 id=\"sessions\">"} {
		resp, err := (&http.Client{Transport: transport, Timeout: replyTime}).Get("http://" + d.http + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("GET %s: %s %.100q", path, resp.Status, body)
		}
	}
	d.interrupt(t)
	c.want("421 *")
	c.closed()

	// A second run has the same files, and the password that the file holds.
	password := d.password
	d = startDemo(t, dir, "--password-file", passwordFile)
	if d.password != password {
		t.Errorf("the password changed from %q to %q", password, d.password)
	}
	c = d.login(t, clientTLS())
	if got := c.fetch("RETR kept.txt"); got != "kept" {
		t.Errorf("the file holds %q", got)
	}
	c.cmd("QUIT", "221 *")
	d.interrupt(t)

	for deadline := time.Now().Add(replyTime); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines were there before, %d are after\n%s", before, runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// --- the daemon as a process ---

// process is a berth of its own.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan map[string]any // its log
	rest  syncBuffer          // what is no log line
	addrs map[string]string   // by kind
}

func startBerth(t *testing.T, env []string, files []*os.File, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{t: t, lines: make(chan map[string]any, 1000), addrs: map[string]string{}}
	p.cmd = exec.CommandContext(ctx, os.Args[0], args...)
	p.cmd.Env = append(append(os.Environ(), asBerth+"=1"), env...)
	p.cmd.ExtraFiles = files
	r, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(p.lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			var line map[string]any
			if json.Unmarshal(s.Bytes(), &line) != nil {
				fmt.Fprintln(&p.rest, s.Text())
				continue
			}
			p.lines <- line
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-read
		p.cmd.Wait()
	})
	return p
}

// serveBerth starts berth serve and waits until it serves.
func serveBerth(t *testing.T, file string, env []string, files ...*os.File) *process {
	t.Helper()
	p := startBerth(t, env, files, "serve", "--config", file)
	line := p.logged("serving")
	for _, f := range strings.Fields(line["listeners"].(string)) {
		kind, addr, _ := strings.Cut(f, "=")
		p.addrs[kind] = addr
	}
	return p
}

// logged waits for a log line with that message.
func (p *process) logged(msg string) map[string]any {
	p.t.Helper()
	timeout := time.After(replyTime)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("berth ended before it logged %q: %s", msg, p.rest.String())
			}
			if line["msg"] == msg {
				return line
			}
		case <-timeout:
			p.t.Fatalf("no log line %q", msg)
		}
	}
}

func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// ended waits for the process and checks its exit code.
func (p *process) ended(code int) {
	p.t.Helper()
	timeout := time.After(replyTime)
	for {
		select {
		case _, ok := <-p.lines:
			if ok {
				continue
			}
		case <-timeout:
			p.t.Fatal("berth does not end")
		}
		break
	}
	p.cmd.Wait()
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Fatalf("exit code %d, want %d: %s", got, code, p.rest.String())
	}
}

func (p *process) dial(kind string) *ftpClient {
	p.t.Helper()
	network := "tcp"
	if kind == "local" {
		network = "unix"
	}
	c, err := net.Dial(network, p.addrs[kind])
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	host, _, _ := net.SplitHostPort(p.addrs[kind])
	return &ftpClient{t: p.t, host: host, bare: c, conn: c, r: bufio.NewReader(c)}
}

const daemonListen = "log.format = \"json\"\nlisten = { control = [\"127.0.0.1:0\"], datagram = [\"127.0.0.1:0\"], http = [\"127.0.0.1:0\"], local = [] }\n"

// quickDrain is for a daemon that is to end while clients are there: they are not
// given the time that they would have, see drainGrace. Nor is the farewell: the test
// of that has a longer one.
const quickDrain = "server.drain = \"200ms\"\n"

func TestDrain(t *testing.T) {
	t.Parallel() // it waits for drainGrace
	file, b := writeConfig(t, daemonListen+"server.drain = \"20s\"\n")
	p := serveBerth(t, file, nil)
	idle, busy := p.dial("control").login(), p.dial("control").login()
	busy.cmd("EPSV", "229 *")
	d := busy.open()
	busy.cmd("STOR up", "150 *")
	io.WriteString(d, "before ")

	p.signal(syscall.SIGTERM)
	idle.want("421 *")
	idle.closed()
	if c, err := net.Dial("tcp", p.addrs["control"]); err == nil {
		c.Close()
		t.Error("a draining berth takes new connections")
	}
	io.WriteString(d, "after")
	d.Close()
	busy.want("226 *", "421 *")
	busy.closed()
	p.ended(exitOK)
	if got := b.content(t, "up"); got != "before after" {
		t.Errorf("the upload holds %q", got)
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	file, _ := writeConfig(t, daemonListen+"server.drain = \"5m\"\n")
	p := serveBerth(t, file, nil)
	busy := p.dial("control").login()
	busy.cmd("EPSV", "229 *")
	d := busy.open()
	busy.cmd("STOR up", "150 *")
	io.WriteString(d, "half")
	p.signal(syscall.SIGTERM)
	p.logged("draining")
	p.signal(syscall.SIGTERM)
	p.ended(exitOK)
}

func TestReload(t *testing.T) {
	file, b := writeConfig(t, daemonListen+"server.name = \"first\"\n")
	p := serveBerth(t, file, nil)
	c := p.dial("control")
	c.want("220 first ready.")
	c.cmd("USER ann", "331 *")
	c.cmd("PASS secret", "230 *")

	// A bad one is refused as a whole, with the line, and the old one stays.
	b.configure(t, daemonListen+"server.name = \"second\"\nlimits.idle = \"forever\"\n")
	p.signal(syscall.SIGHUP)
	if line := p.logged("reload refused, the old configuration stays"); !strings.Contains(fmt.Sprint(line["error"]), file+":4") {
		t.Errorf("reload: %v", line)
	}
	p.dial("control").want("220 first ready.")

	b.configure(t, daemonListen+quickDrain+"server.name = \"second\"\n")
	p.signal(syscall.SIGHUP)
	p.logged("reloaded")
	p.dial("control").want("220 second ready.")

	// A user file with a mistake refuses it too.
	b.user(t, "bob", "nosuch = 1\n")
	b.configure(t, daemonListen+quickDrain+"server.name = \"third\"\n")
	p.signal(syscall.SIGHUP)
	p.logged("reload refused, the old configuration stays")
	p.dial("control").want("220 second ready.")

	c.cmd("PWD", "257 *") // the session lived through all of it
	p.signal(syscall.SIGTERM)
	p.ended(exitOK)
}

func TestHealth(t *testing.T) {
	file, b := writeConfig(t, daemonListen)
	p := serveBerth(t, file, nil)
	b.configure(t, fmt.Sprintf("listen.http = [%q]\n", p.addrs["http"]))
	if code, out, errs := cli(t, "health", "--config", file); code != exitOK || out == "" {
		t.Errorf("health: %d, %q, %q", code, out, errs)
	}
	p.signal(syscall.SIGTERM)
	p.ended(exitOK)
	if code, _, errs := cli(t, "health", "--config", file); code != exitNoConn || errs == "" {
		t.Errorf("health of nobody: %d, %q", code, errs)
	}
	b.configure(t, "listen.http = []\n")
	if code, _, errs := cli(t, "health", "--config", file); code != exitUsage || !strings.Contains(errs, "listen.http") {
		t.Errorf("health without http: %d, %q", code, errs)
	}
}

// TestLocalSocket: the kernel says who it is (contract section 3).
func TestLocalSocket(t *testing.T) {
	file, b := writeConfig(t, "")
	sock := filepath.Join(b.dir, "run", "berth.sock")
	b.configure(t, fmt.Sprintf(quickDrain+"log.format = \"json\"\nlisten = { control = [], datagram = [], http = [], local = [%q] }\n", sock))
	b.user(t, "ann", fmt.Sprintf("uid = %d\n", os.Getuid()))
	b.put(t, "a", "x")
	for range 2 { // the second start finds the first one's socket, or none
		p := serveBerth(t, file, nil)
		p.addrs["local"] = sock
		c := p.dial("local")
		c.want("220 *ann*")
		c.cmd("PWD", "257 *")
		c.cmd("STAT a", "213-*", " -rw-* a", "213 *")
		c.cmd("EPSV", "502 *")
		c.cmd("PASV", "502 *")
		c.cmd("PORT 127,0,0,1,156,64", "502 *")
		c.cmd("LIST", "425 *")
		c.cmd("AUTH TLS", "534 *")
		c.send("FEAT\r\n")
		if _, text := c.reply(); strings.Contains(text, "PASV") || strings.Contains(text, "AUTH") {
			t.Errorf("FEAT lists what does not work here: %q", text)
		}
		c.cmd("QUIT", "221 *")
		p.signal(syscall.SIGTERM)
		p.ended(exitOK)
		if err := syscall.Mknod(sock, syscall.S_IFSOCK|0o600, 0); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err) // what kill -9 leaves behind
		}
	}
}

// --- inherited sockets ---

// listenerFile is a socket as systemd passes it.
func listenerFile(t *testing.T, network string) (*os.File, string) {
	t.Helper()
	var f *os.File
	var addr net.Addr
	switch network {
	case "tcp":
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		if f, err = ln.(*net.TCPListener).File(); err != nil {
			t.Fatal(err)
		}
		addr = ln.Addr()
	default:
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		if f, err = pc.(*net.UDPConn).File(); err != nil {
			t.Fatal(err)
		}
		addr = pc.LocalAddr()
	}
	t.Cleanup(func() { f.Close() })
	return f, addr.String()
}

func TestInheritedSockets(t *testing.T) {
	file, _ := writeConfig(t, daemonListen+quickDrain)
	one, oneAddr := listenerFile(t, "tcp")
	two, twoAddr := listenerFile(t, "tcp")
	udp, udpAddr := listenerFile(t, "udp")
	implicit, implicitAddr := listenerFile(t, "tcp")
	p := serveBerth(t, file, []string{"LISTEN_FDS=4", "LISTEN_FDNAMES=control:datagram:control:tls"}, one, udp, two, implicit)
	for _, addr := range []string{oneAddr, twoAddr} { // any number may share a name
		p.addrs["control"] = addr
		c := p.dial("control").login()
		c.cmd("QUIT", "221 *")
	}
	p.addrs["control"] = implicitAddr
	c := p.dial("control")
	c.startTLS(clientTLS())
	c.login()
	u, err := net.Dial("udp", udpAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	u.SetDeadline(time.Now().Add(replyTime))
	io.WriteString(u, "echo hi")
	var answer [10]byte
	if n, err := u.Read(answer[:]); err != nil || string(answer[:n]) != "hi" {
		t.Errorf("%q, %v", answer[:n], err)
	}
	// What was not passed is opened as configured.
	if resp, err := http.Get("http://" + p.addrs["http"] + "/healthz"); err != nil {
		t.Error(err)
	} else {
		resp.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
	p.signal(syscall.SIGTERM)
	p.ended(exitOK)
	// The socket outlives berth: its backlog holds clients until the next start.
	held, err := net.Dial("tcp", oneAddr)
	if err != nil {
		t.Fatalf("a restart refuses connections: %v", err)
	}
	held.Close()
}

func TestInheritedSocketsRefused(t *testing.T) {
	for _, test := range []struct{ name, network, want string }{
		{"ftp", "tcp", `"ftp"`},
		{"", "tcp", "FileDescriptorName"},
		{"datagram", "tcp", `"datagram"`},
		{"control", "udp", `"control"`},
	} {
		t.Run(test.name+" "+test.network, func(t *testing.T) {
			file, _ := writeConfig(t, daemonListen)
			f, _ := listenerFile(t, test.network)
			p := startBerth(t, []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=" + test.name}, []*os.File{f}, "serve", "--config", file)
			p.ended(exitFailed)
			if !strings.Contains(p.rest.String(), test.want) {
				t.Errorf("it says %q; want %q in it", p.rest.String(), test.want)
			}
		})
	}
}
