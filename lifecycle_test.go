// These tests are about when: what systemd is told, what a reload changes, who may go on
// while the daemon drains, when it goes by itself. What depends on time runs in a bubble
// with a network in memory; what depends on the kernel, as its queue of connections, runs
// on real sockets, and what depends on signals in a process of its own.

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// --- systemd's end of sd_notify(3) ---

// A manager is the socket in NOTIFY_SOCKET. Its descriptor never blocks, so it can be
// read in a bubble, too.
type manager struct {
	t    testing.TB
	path string
	fd   int
}

func newManager(t testing.TB) *manager {
	t.Helper()
	m := &manager{t: t, path: filepath.Join(shortDir(t), "notify")}
	var err error
	if m.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.close)
	if err := unix.Bind(m.fd, &unix.SockaddrUnix{Name: m.path}); err != nil {
		t.Fatal(err)
	}
	return m
}

// manage makes it the manager of this process.
func manage(t *testing.T) *manager {
	t.Helper()
	m := newManager(t)
	t.Setenv("NOTIFY_SOCKET", m.path)
	return m
}

// close ends it: what nobody reads would fill its queue, and hold the daemon up.
func (m *manager) close() {
	if m.fd >= 0 {
		unix.Close(m.fd)
		m.fd = -1
	}
}

func (m *manager) env() string { return "NOTIFY_SOCKET=" + m.path }

// heard is what has come since it was last asked, a message a string.
func (m *manager) heard() (all []string) {
	m.t.Helper()
	buf := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(m.fd, buf, 0)
		switch {
		case err == unix.EAGAIN:
			return all
		case err == unix.EINTR:
		case err != nil:
			m.t.Fatal(err)
		default:
			all = append(all, string(buf[:n]))
		}
	}
}

// next waits for a message.
func (m *manager) next() string {
	m.t.Helper()
	buf := make([]byte, 4096)
	for end := time.Now().Add(replyTime); time.Now().Before(end); {
		if n, _, err := unix.Recvfrom(m.fd, buf, 0); err == nil {
			return string(buf[:n])
		}
		unix.Poll([]unix.PollFd{{Fd: int32(m.fd), Events: unix.POLLIN}}, 100)
	}
	m.t.Fatal("systemd hears nothing")
	return ""
}

// hears waits for a message and compares; * stands for anything.
func (m *manager) hears(patterns ...string) {
	m.t.Helper()
	for _, p := range patterns {
		if got := m.next(); !wildcard(p, got) {
			m.t.Fatalf("systemd hears %q; want %q", got, p)
		}
	}
}

// heardNow compares what has come, in a bubble or after a call that tells systemd itself.
func (m *manager) heardNow(patterns ...string) {
	m.t.Helper()
	all := m.heard()
	if len(all) != len(patterns) {
		m.t.Fatalf("systemd heard %q; want %q", all, patterns)
	}
	for i, p := range patterns {
		if !wildcard(p, all[i]) {
			m.t.Fatalf("systemd heard %q; want %q", all[i], p)
		}
	}
}

// --- a daemon in a bubble ---

// listenMem gives the box listeners of the network in memory, as if systemd had passed
// those of which given is true, and begins to serve on them.
func (b *ftpBox) listenMem(t testing.TB, given bool, kinds ...string) (all []*memListener) {
	t.Helper()
	for _, kind := range kinds {
		l, err := b.net.listen(netip.AddrPortFrom(testLocal, 0))
		if err != nil {
			t.Fatal(err)
		}
		b.srv.sockets = append(b.srv.sockets, socket{kind: kind, stream: l, given: given})
		all = append(all, l.(*memListener))
	}
	b.srv.serve()
	t.Cleanup(func() {
		for _, k := range b.srv.sockets {
			k.close()
		}
	})
	return all
}

// knock connects to one of them.
func (b *ftpBox) knock(t testing.TB, l *memListener) *ftpClient {
	t.Helper()
	c, err := b.net.connect(testPeer, l.addr.Port())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &ftpClient{t: t, box: b, bare: c, conn: c, r: bufio.NewReader(c), peer: testPeer, over: make(chan struct{})}
}

// attends runs what waits for signals, and returns where they come from and when it ended.
func (b *ftpBox) attends(t *testing.T) (signals chan os.Signal, over chan struct{}) {
	signals, over = make(chan os.Signal), make(chan struct{})
	go func() { defer close(over); b.srv.attend(signals) }()
	t.Cleanup(func() {
		select {
		case signals <- syscall.SIGTERM:
			<-over
		case <-over:
		}
	})
	return signals, over
}

// A drained is a daemon on its way out.
type draining struct {
	signals chan os.Signal
	over    chan struct{}
	began   time.Time
}

// drains begins a drain and waits until everybody has been told.
func (b *ftpBox) drains() *draining {
	d := &draining{signals: make(chan os.Signal, 1), over: make(chan struct{}), began: time.Now()}
	go func() { defer close(d.over); b.srv.shutdown(d.signals) }()
	synctest.Wait()
	return d
}

// took waits for its end and tells how long it has taken.
func (d *draining) took() time.Duration {
	<-d.over
	return time.Since(d.began)
}

// --- what systemd is told ---

func TestStatusIsTold(t *testing.T) {
	m := manage(t)
	inBox(t, "limits.data_timeout = \"1h\"\n", "", func(t *testing.T, b *ftpBox) {
		signals, over := b.attends(t)
		time.Sleep(statusEvery + 1)
		m.heardNow("STATUS=0 sessions, 0 transfers")
		c := b.dial(t).login()
		time.Sleep(statusEvery)
		m.heardNow("STATUS=1 session, 0 transfers")
		other := b.dial(t).login()
		c.cmd("EPSV", "229 *")
		c.send("STOR f\r\n")
		d := c.data()
		c.want("150 *")
		time.Sleep(statusEvery)
		m.heardNow("STATUS=2 sessions, 1 transfer")
		time.Sleep(4 * statusEvery) // fewer than its queue takes
		m.heardNow()                // nothing has changed
		d.Close()
		c.want("226 *")
		for _, c := range []*ftpClient{c, other} {
			c.cmd("QUIT", "221 *")
			<-c.over
		}
		time.Sleep(statusEvery)
		m.heardNow("STATUS=0 sessions, 0 transfers")
		signals <- syscall.SIGTERM
		<-over
		m.heardNow()
	})
}

// monotonic is the clock that systemd compares with.
func monotonic(t *testing.T) int64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return ts.Nano() / 1000
}

func (b *ftpBox) reconfigure(t *testing.T, text string) {
	t.Helper()
	b.configure(t, text+"\nserver.name = \"box\"\npassive.ports = \"\"\n")
}

func TestReloadIsTold(t *testing.T) {
	m := manage(t)
	b := newFTPBox(t, "", "")
	reloading := func() {
		t.Helper()
		before := monotonic(t)
		err := b.srv.reload()
		after := monotonic(t)
		all := m.heard()
		if len(all) != 2 {
			t.Fatalf("systemd heard %q", all)
		}
		at, ok := strings.CutPrefix(all[0], "RELOADING=1\nMONOTONIC_USEC=")
		if n, perr := strconv.ParseInt(strings.TrimSuffix(at, "\n"), 10, 64); !ok || perr != nil || n < before || n > after {
			t.Errorf("systemd heard %q between %d and %d", all[0], before, after)
		}
		want := "READY=1\nSTATUS=0 sessions, 0 transfers"
		if err != nil {
			first, _, _ := strings.Cut(err.Error(), "\n")
			want += "; reload refused, the old configuration stays: " + first
		}
		if all[1] != want {
			t.Errorf("systemd heard %q; want %q", all[1], want)
		}
	}
	reloading()
	b.reconfigure(t, "limits.idle = \"forever\"\nlimits.login_timeout = 7\n") // two mistakes; the first is told
	reloading()
	if !strings.Contains(b.srv.status(), "berth.toml:1:15: limits.idle") {
		t.Errorf("status %q", b.srv.status())
	}
	b.reconfigure(t, "")
	reloading()
}

// While it drains, systemd hears that the daemon lives, how much longer it needs, and of
// what. Each wait that it is told of is longer than until the next message.
func TestDrainIsTold(t *testing.T) {
	m := manage(t)
	inBox(t, "server.drain = \"20s\"\n", "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t).login()
		c.cmd("EPSV", "229 *")
		c.send("STOR f\r\n")
		data := c.data()
		c.want("150 *")
		d := b.drains()
		m.heardNow("STOPPING=1", "WATCHDOG=1\nEXTEND_TIMEOUT_USEC=*\nSTATUS=draining: 1 session and 1 transfer left, at most 20s more")
		extended := time.Now().Add(extendBy)
		for range 5 {
			time.Sleep(extendEvery)
			synctest.Wait()
			all := m.heard()
			if len(all) != 1 || !time.Now().Before(extended) {
				t.Fatalf("after %v systemd heard %q", time.Since(d.began), all)
			}
			usec := regexp.MustCompile(`^WATCHDOG=1\nEXTEND_TIMEOUT_USEC=(\d+)\nSTATUS=draining: 1 session and 1 transfer left, at most (\d+s) more$`).FindStringSubmatch(all[0])
			if usec == nil || usec[2] != (20*time.Second-time.Since(d.began)).String() {
				t.Fatalf("after %v systemd heard %q", time.Since(d.began), all)
			}
			n, _ := strconv.Atoi(usec[1])
			extended = time.Now().Add(time.Duration(n) * time.Microsecond)
		}
		data.Close()
		c.want("226 *", "421 *")
		if took := d.took(); took > 5*extendEvery+extendEvery {
			t.Errorf("it took %v", took)
		}
		// The last one is for the end itself.
		all := m.heard()
		if len(all) == 0 || !strings.HasPrefix(all[len(all)-1], "EXTEND_TIMEOUT_USEC=") {
			t.Errorf("systemd heard %q", all)
		}
	})
}

// The whole life, by signals.
func TestLifeAsAService(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	port := freePort(t)
	file, b := writeConfig(t, strings.Replace(daemonListen, "127.0.0.1:0", fmt.Sprint("127.0.0.1:", port), 1))
	p := startBerth(t, []string{m.env()}, nil, "serve", "--config", file)
	m.hears("READY=1\nSTATUS=0 sessions, 0 transfers")
	p.addrs["control"] = fmt.Sprint("127.0.0.1:", port)
	c := p.dial("control").login() // ready is who answers

	p.signal(syscall.SIGUSR1)
	line := p.logged("state")
	for key, want := range map[string]string{"sessions": "1", "transfers": "0", "draining": "false", "commands": "0", "on_upload_waiting": "0"} {
		if got := fmt.Sprint(line[key]); got != want {
			t.Errorf("state: %s is %s; want %s", key, got, want)
		}
	}
	for _, key := range []string{"uptime", "goroutines", "heap", "descriptors"} {
		if n, ok := line[key].(float64); !ok || n < 0 {
			t.Errorf("state: %s is %v", key, line[key])
		}
	}
	if line := p.logged("state of a listener"); line["name"] != "control" || line["addr"] != p.addrs["control"] || line["from_systemd"] != false {
		t.Errorf("%v", line)
	}
	if line := p.logged("state of a session"); line["user"] != "ann" || line["proto"] != "ftp" || line["addr"] != "127.0.0.1" || line["doing"] != "idle" {
		t.Errorf("%v", line)
	}

	p.signal(syscall.SIGHUP)
	m.hears("RELOADING=1\nMONOTONIC_USEC=*", "READY=1\nSTATUS=1 session, 0 transfers")
	b.configure(t, daemonListen)
	p.signal(syscall.SIGHUP)
	m.hears("RELOADING=1\n*", "READY=1\nSTATUS=1 session, 0 transfers; reload refused, the old configuration stays: [listen] can change only at a restart, all but proxy_from")
	p.signal(syscall.SIGTERM)
	m.hears("STOPPING=1", "WATCHDOG=1\n*STATUS=draining: 1 session and 0 transfers left, at most *")
	c.cmd("QUIT", "221 *")
	m.hears("EXTEND_TIMEOUT_USEC=*")
	p.ended(exitOK)
	if all := m.heard(); len(all) != 0 {
		t.Errorf("systemd heard %q at last", all)
	}
}

// --- the watchdog ---

// A lameListener is one of which nobody takes anything while it is stuck, or whose
// accept(2) fails.
type lameListener struct {
	net.Listener
	stuck  chan struct{}
	fails  error
	closed atomic.Bool
}

func (l *lameListener) Close() error {
	l.closed.Store(true)
	return l.Listener.Close()
}

func (l *lameListener) Accept() (net.Conn, error) {
	if l.fails != nil && !l.closed.Load() {
		return nil, l.fails
	}
	c, err := l.Listener.Accept()
	if l.stuck != nil {
		<-l.stuck
	}
	return c, err
}

// watched is a box with a listener of every kind and a watchdog; lame, if it is not "",
// is the kind that is lame.
func watched(t *testing.T, lame string, l *lameListener) (b *ftpBox, m *manager) {
	t.Helper()
	m = manage(t)
	t.Setenv("WATCHDOG_USEC", fmt.Sprint((60*time.Millisecond).Microseconds()*watchdogShare))
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	local := filepath.Join(shortDir(t), "s")
	b = newFTPBox(t, fmt.Sprintf("server.drain = \"1s\"\nlisten = { control = [\"127.0.0.1:0\", \"0.0.0.0:0\", \":0\"], tls = [\"127.0.0.1:0\"], datagram = [\"127.0.0.1:0\"], http = [\"127.0.0.1:0\"], local = [%q] }\n", local), "")
	if err := b.srv.open(false); err != nil {
		t.Fatal(err)
	}
	for i, k := range b.srv.sockets {
		if k.kind == lame {
			l.Listener = k.stream
			b.srv.sockets[i].stream = l
			break
		}
	}
	b.srv.serve()
	t.Cleanup(func() { b.srv.shutdown(nil) })
	ctx, stop := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() { b.srv.watchdog(ctx) })
	t.Cleanup(func() { stop(); watching.Wait() })
	return b, m
}

// notWell waits until the daemon has said n times more that it is not.
func (b *ftpBox) notWell(t *testing.T, n int, about string) {
	t.Helper()
	already := strings.Count(b.log.String(), "not well")
	waitUntil(t, "the daemon says that it is not well", func() bool { return strings.Count(b.log.String(), "not well") >= already+n })
	if !strings.Contains(b.log.String(), about) {
		t.Errorf("the log has no %q: %s", about, b.log)
	}
}

func TestWatchdog(t *testing.T) {
	t.Run("well", func(t *testing.T) {
		b, m := watched(t, "", nil)
		m.hears("WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1")
		// Nobody has to know of its own connections.
		if n, _ := b.srv.count(); n != 0 || b.metric(t, "berth_sessions_started_total") != 0 || strings.Contains(b.log.String(), "session") {
			t.Errorf("%d sessions; log %s", n, b.log)
		}
		// What every session needs cannot be had: that is not well, and is over when it
		// can be had again.
		b.srv.mu.Lock()
		b.notWell(t, 1, "nobody took it")
		m.heard()
		b.notWell(t, 3, "nobody took it")
		told := m.heard()
		b.srv.mu.Unlock()
		if len(told) != 0 {
			t.Errorf("systemd heard %q while no session could begin", told)
		}
		m.hears("WATCHDOG=1", "WATCHDOG=1")
	})
	for _, kind := range []string{"control", "tls", "http", "local"} {
		t.Run(kind+" is stuck", func(t *testing.T) {
			l := &lameListener{stuck: make(chan struct{})}
			b, m := watched(t, kind, l)
			b.notWell(t, 3, kind+" ")
			told := m.heard()
			close(l.stuck)
			if len(told) != 0 {
				t.Errorf("systemd heard %q while nobody took connections", told)
			}
			m.hears("WATCHDOG=1")
		})
	}
	t.Run("accept fails", func(t *testing.T) {
		_, m := watched(t, "control", &lameListener{fails: os.NewSyscallError("accept4", syscall.EMFILE)})
		m.hears("WATCHDOG=1", "WATCHDOG=1")
	})
}

// watchdogUsec is WatchdogSec= for a daemon of its own.
const watchdogUsec = "WATCHDOG_USEC=300000"

// A daemon that has no descriptor left for anybody is well: to be killed would end all
// sessions, and mend nothing.
func TestWatchdogWithoutDescriptors(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	file, _ := writeConfig(t, daemonListen)
	p := serveBerth(t, file, []string{m.env(), watchdogUsec})
	c := p.dial("control").login()
	m.hears("READY=1\n*", "WATCHDOG=1")
	var was unix.Rlimit
	pid := p.cmd.Process.Pid
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}, nil); err != nil {
		t.Fatal(err)
	}
	waits, err := net.Dial("tcp", p.addrs["control"]) // so that there is something to take
	if err != nil {
		t.Fatal(err)
	}
	defer waits.Close()
	p.logged("cannot accept connections")
	m.heard()
	m.hears("WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1")
	c.cmd("PWD", "257 *")
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil); err != nil {
		t.Fatal(err)
	}
	waits.SetDeadline(time.Now().Add(replyTime))
	if line, err := bufio.NewReader(waits).ReadString('\n'); !strings.HasPrefix(line, "220 ") {
		t.Errorf("who waited meanwhile: %q, %v", line, err)
	}
	p.signal(syscall.SIGTERM)
	c.cmd("QUIT", "221 *")
}

// The watchdog is for whom systemd has named, if it has one at all.
func TestWatchdogOfAnother(t *testing.T) {
	for _, env := range [][2]string{{"", ""}, {"0", ""}, {"60000", "1"}} {
		m := manage(t)
		t.Setenv("WATCHDOG_USEC", env[0])
		t.Setenv("WATCHDOG_PID", env[1])
		b := newFTPBox(t, "", "")
		b.srv.watchdog(t.Context()) // returns at once
		m.heardNow()
	}
}

// --- reload ---

// changes is what the log says of the last reload, a line each: key, old and new.
func (b *ftpBox) changes(t *testing.T) (all []string) {
	t.Helper()
	log := b.log.String()
	end := strings.LastIndex(log, "msg=reloaded")
	if end < 0 {
		t.Fatalf("no reload: %s", log)
	}
	log = log[:end]
	if i := strings.LastIndex(log, "msg=reloaded"); i >= 0 {
		log = log[i:]
	}
	for line := range strings.Lines(log) {
		if _, what, ok := strings.Cut(line, "msg=changed "); ok {
			all = append(all, strings.TrimSpace(what))
		}
	}
	return all
}

func TestReloadSaysWhatChanged(t *testing.T) {
	t.Parallel()
	inBox(t, "commands.old.run = [\"/bin/true\"]\ncommands.kept.run = [\"/bin/true\"]\n", "", reloadSays)
}

func reloadSays(t *testing.T, b *ftpBox) {
	synctest.Wait() // the housekeeper has looked at the users that there are
	b.user(t, "bob", "")
	b.user(t, "eve", "")
	check := func(want ...string) {
		t.Helper()
		if err := b.srv.reload(); err != nil {
			t.Fatal(err)
		}
		if got := b.changes(t); !slices.Equal(got, want) {
			t.Errorf("changed:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if !strings.HasSuffix(strings.TrimSpace(b.log.String()), fmt.Sprintf("msg=reloaded changes=%d", len(want))) {
			t.Errorf("the last line is not that of %d changes", len(want))
		}
	}
	check(`key="user bob" old="" new=added`, `key="user eve" old="" new=added`)
	check()
	b.reconfigure(t, `limits.idle = "7m"
filter.deny_from = ["192.0.2.0/24"]
listen.proxy_from = ["192.0.2.1"]
server.idle_exit = "1m"
commands.kept = { run = ["/bin/true", "x"], timeout = "9s" }
commands.new.run = ["/bin/false"]
`)
	b.user(t, "bob", "quota_files = 7\n")
	if err := os.Remove(filepath.Join(b.dir, "users.d", "eve.toml")); err != nil {
		t.Fatal(err)
	}
	// Another hash of the same password: that it is another is told, and not the hash.
	hash, err := hashPassword("secret")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "users.d", "ann.toml"), fmt.Appendf(nil, "password = %q\nhome = %q\n", hash, b.home), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.srv.reload(); err != nil {
		t.Fatal(err)
	}
	got := b.changes(t)
	for _, want := range []string{
		`key=server.idle_exit old=0 new=1m`, `key=listen.proxy_from old=[] new=[192.0.2.1*]`, `key=limits.idle old=10m new=7m`, `key=filter.deny_from old=[] new=[192.0.2.0/24]`,
		`key=commands.kept.run old=[/bin/true] new="[/bin/true x]"`, `key=commands.kept.timeout old=0 new=9s`, `key=commands.new old="" new=added`, `key=commands.old old="" new=removed`,
		`key="user ann" old="" new=changed`, `key="user bob" old="" new=changed`, `key="user eve" old="" new=removed`,
	} {
		i := slices.IndexFunc(got, func(s string) bool {
			return wildcard(want, s)
		})
		if i < 0 {
			t.Errorf("not told: %s", want)
			continue
		}
		got = slices.Delete(got, i, i+1)
	}
	if len(got) > 0 {
		t.Errorf("told without need: %q", got)
	}
	if strings.Contains(b.log.String(), "$") {
		t.Errorf("a hash is in the log: %s", b.log)
	}
	if len(b.srv.config().Listen.ProxyFrom) != 1 {
		t.Error("proxy_from is not taken")
	}
}

// A reload with any mistake changes nothing at all.
func TestReloadAllOrNothing(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ what, config, user, says string }{
		{"a mistake", "limits.idle = \"forever\"\n", "", "berth.toml:2:15: limits.idle"},
		{"a user's mistake", "", "nosuch = 1\n", "bob.toml:3: nosuch"},
		{"a command that nobody has defined", "", "commands = [\"snap\"]\n", `bob.toml:3: commands: there is no command "snap"`},
		{"another address", "listen.control = [\"127.0.0.1:0\"]\n", "", "[listen] can change only at a restart, all but proxy_from"},
		{"another mode", "listen.local_mode = \"0600\"\n", "", "[listen] can change only at a restart, all but proxy_from"},
		{"another certificate", "tls.session_reuse = \"on\"\n", "", "tls.certificate, key, client_ca and session_reuse can change only at a restart"},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			b := newFTPBox(t, "", "")
			before := b.srv.config()
			b.reconfigure(t, "log.level = \"error\"\n"+test.config+"limits.sessions = 3\nlisten.proxy_from = [\"192.0.2.1\"]\n")
			b.user(t, "bob", test.user) // who is there at his first login, with a reload or without
			err := b.srv.reload()
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("reload: %v; want %q", err, test.says)
			}
			if b.srv.config() != before || !b.srv.debug() {
				t.Error("some of it has been taken")
			}
			if log := b.log.String(); strings.Contains(log, "msg=changed") || !strings.Contains(log, "reload refused, the old configuration stays") {
				t.Errorf("the log has %s", log)
			}
			if got := b.metric(t, "berth_config_last_reload_successful"); got != 0 {
				t.Errorf("berth_config_last_reload_successful is %v", got)
			}
		})
	}
}

// --- drain ---

func TestDrainEmpty(t *testing.T) {
	t.Parallel()
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		if took := b.drains().took(); took != 0 {
			t.Errorf("nobody is there, and it takes %v", took)
		}
	})
}

// Who has been greeted a moment ago can do what he came for.
func TestDrainServesWhoHasJustCome(t *testing.T) {
	t.Parallel()
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		b.put(t, "a", "content")
		l := b.listenMem(t, true, "control")[0]
		c := b.knock(t, l)
		c.want("220 *")
		framed := b.knock(t, l)
		framed.want("220 *")
		d := b.drains()
		pause := drainGrace - 4*time.Second
		time.Sleep(pause)
		c.cmd("USER ann", "331 *")
		time.Sleep(pause)
		c.cmd("PASS secret", "230 *")
		time.Sleep(pause)
		if got := c.fetch("RETR a"); got != "content" {
			t.Errorf("%q", got)
		}
		c.cmd("QUIT", "221 *")
		f := framed.frames().enter()
		if got := f.fetchFile("a"); got != "content" {
			t.Errorf("%q", got)
		}
		f.do(`{"do":"quit"}`, 221, "")
		if took := d.took(); took != 3*pause {
			t.Errorf("it takes %v", took)
		}
	})
}

// It is a courtesy, and has an end: for who says no more, and for who goes on and on.
func TestDrainCourtesyEnds(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		drain string
		most  time.Duration
	}{{"1m", drainCourtesy}, {"4s", 2 * time.Second}} { // half of the drain is for transfers
		t.Run(test.drain, func(t *testing.T) {
			inBox(t, fmt.Sprintf("server.drain = %q\n", test.drain), "", func(t *testing.T, b *ftpBox) {
				silent, talks := b.dial(t).login(), b.dial(t).login()
				frames := b.dialFrames(t).enter()
				d := b.drains()
				var at [3]atomic.Int64
				var all sync.WaitGroup
				all.Go(func() {
					silent.want("421 *")
					at[0].Store(int64(time.Since(d.began)))
					silent.closed()
				})
				all.Go(func() {
					for {
						line, err := talks.line(500 * time.Millisecond)
						if err != nil {
							io.WriteString(talks.conn, "NOOP\r\n") // it may have hung up this moment
							line, _ = talks.line(time.Second)
						}
						if !strings.HasPrefix(line, "200 ") {
							if !strings.HasPrefix(line, "421 ") {
								t.Errorf("it says %q", line)
							}
							break
						}
					}
					at[1].Store(int64(time.Since(d.began)))
				})
				all.Go(func() {
					frames.wantFrame(frameAnswer, `{"code":421,*`)
					at[2].Store(int64(time.Since(d.began)))
					frames.ended()
				})
				all.Wait()
				if got, want := time.Duration(at[0].Load()), min(drainGrace, test.most); got != want {
					t.Errorf("who says nothing has %v; want %v", got, want)
				}
				if got := time.Duration(at[1].Load()); got < test.most-time.Second || got > test.most+time.Second {
					t.Errorf("who talks has %v; want %v", got, test.most)
				}
				if got := time.Duration(at[2].Load()); got > min(drainGrace, test.most) {
					t.Errorf("frames that say nothing have %v", got)
				}
				d.took()
			})
		})
	}
}

// Who is slow has his five seconds for each command, parked or not; they begin with the last one, and not with the drain.
func TestDrainWaitsForTheSlow(t *testing.T) {
	t.Parallel()
	inBox(t, "server.drain = \"1m\"\n", "", func(t *testing.T, b *ftpBox) {
		line, frames := b.dial(t).login(), b.dialFrames(t).enter()
		time.Sleep(3 * time.Second)
		d := b.drains()
		time.Sleep(drainGrace - 3*time.Second - 1)
		line.cmd("PWD", "257 *")
		frames.do(`{"do":"stat","path":"/"}`, 213, "")
		time.Sleep(drainGrace - 1)
		line.cmd("PWD", "257 *")
		frames.do(`{"do":"stat","path":"/"}`, 213, "")
		line.want("421 *")
		frames.wantFrame(frameAnswer, `{"code":421,*`)
		if took, want := d.took(), drainCourtesy; took != want {
			t.Errorf("it takes %v; want %v", took, want)
		}
	})
	inBox(t, "server.drain = \"1m\"\n", "", func(t *testing.T, b *ftpBox) {
		line, frames := b.dial(t).login(), b.dialFrames(t).enter()
		time.Sleep(3 * time.Second)
		d := b.drains()
		line.want("421 *")
		frames.wantFrame(frameAnswer, `{"code":421,*`)
		if took, want := d.took(), drainGrace-3*time.Second; took != want {
			t.Errorf("it takes %v; want %v", took, want)
		}
	})
}

// Who has been quiet for a while is told at once, on the wire as in memory.
func TestDrainQuiet(t *testing.T) {
	t.Parallel()
	t.Run("frames", func(t *testing.T) {
		inBox(t, "", "", func(t *testing.T, b *ftpBox) {
			c := b.dialFrames(t).enter()
			time.Sleep(drainGrace)
			d := b.drains()
			c.wantFrame(frameAnswer, `{"code":421,*`)
			if took := d.took(); took != 0 {
				t.Errorf("it takes %v", took)
			}
		})
	})
	t.Run("lines", func(t *testing.T) {
		t.Parallel()
		b := newFTPBox(t, "server.drain = \"1m\"\n"+strings.Replace(realListen, "server.drain = \"5s\"\n", "", 1), "")
		c := b.dialReal(t, b.serveReal(t)[0]).login()
		waitUntil(t, "the session has been quiet for a while", func() bool {
			time.Sleep(5 * time.Millisecond)
			s := b.srv.everySession()[0]
			s.mu.Lock()
			defer s.mu.Unlock()
			parked := s.idle && time.Since(s.idleFrom) > parkAfter+parkAfter/10
			if parked { // and now for longer than it was
				s.idleFrom = s.idleFrom.Add(-drainGrace)
			}
			return parked
		})
		began := time.Now()
		go b.srv.shutdown(nil)
		c.want("421 *")
		c.closed()
		if took := time.Since(began); took >= drainGrace-2*parkAfter {
			t.Errorf("a quiet session is told after %v", took)
		}
		b.srv.running.Wait()
	})
}

// A transfer finishes, and what was said meanwhile is not begun any more when it is too late.
func TestDrainTransfer(t *testing.T) {
	t.Parallel()
	inBox(t, "server.drain = \"1m\"\n", "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t).login()
		c.cmd("EPSV", "229 *")
		c.send("STOR f\r\n")
		data := c.data()
		c.want("150 *")
		io.WriteString(data, "one ")
		d := b.drains()
		time.Sleep(drainCourtesy + 20*time.Second)
		io.WriteString(data, "two")
		c.send("PWD\r\n")
		data.Close()
		c.want("226 *", "421 *")
		c.closed()
		if took := d.took(); took < drainCourtesy+20*time.Second || took > drainCourtesy+21*time.Second {
			t.Errorf("it takes %v", took)
		}
		if got := b.content(t, "f"); got != "one two" {
			t.Errorf("%q", got)
		}
	})
}

// One that does not finish ends with the drain.
func TestDrainHasAnEnd(t *testing.T) {
	t.Parallel()
	for _, signal := range []os.Signal{nil, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1} {
		t.Run(fmt.Sprint(signal), func(t *testing.T) {
			inBox(t, "server.drain = \"1m\"\nlimits.data_timeout = \"10m\"\n", "", func(t *testing.T, b *ftpBox) {
				c := b.dial(t).login()
				c.cmd("EPSV", "229 *")
				c.send("STOR f\r\n")
				data := c.data()
				c.want("150 *")
				io.WriteString(data, "half")
				d := b.drains()
				want := time.Minute
				if signal != nil {
					time.Sleep(3 * time.Second)
					d.signals <- signal
					if signal == syscall.SIGTERM || signal == syscall.SIGINT {
						want = 3 * time.Second // the second one ends it at once
					}
				}
				if took := d.took(); took < want || took > want+2*closeTimeout {
					t.Errorf("it takes %v; want %v", took, want)
				}
				if got := b.content(t, "f"); got != "half" { // what came is kept
					t.Errorf("the file holds %q", got)
				}
				if dumped := strings.Contains(b.log.String(), "msg=state "); dumped != (signal == syscall.SIGUSR1) {
					t.Errorf("state in the log: %v", dumped)
				}
			})
		})
	}
}

// Frames that were sent before the drain began are answered, all of them and in order.
func TestDrainPipelinedFrames(t *testing.T) {
	t.Parallel()
	const n = 100
	for _, before := range []int{0, 1, n / 2, n} { // how many answers are read before it begins
		inBox(t, "", "", func(t *testing.T, b *ftpBox) {
			b.put(t, "a", "x")
			c := b.dialFrames(t).enter()
			var all []byte
			for range n {
				all = appendFrame(all, frameRequest, []byte(`{"do":"stat","path":"a"}`))
			}
			c.send(string(all))
			stat := func() { c.wantFrame(frameAnswer, `{"code":2*`) }
			for range before {
				stat()
			}
			d := b.drains()
			for range n - before {
				stat()
			}
			c.wantFrame(frameAnswer, `{"code":421,*`)
			c.ended()
			d.took()
		})
	}
}

// Nobody who was accepted is lost: each gets a greeting and can do what he came for,
// from this daemon or from the next one on the same socket.
func TestRestartLosesNobody(t *testing.T) {
	t.Parallel()
	file, _ := writeConfig(t, strings.Replace(daemonListen, "listen =", "limits.sessions_per_address = 1000\nlisten =", 1))
	control := give(t, "", "control", "tcp")
	env, files := passed(control)
	p := serveBerth(t, file, env, files...)
	drainLog(p)
	const rounds, clients = 3, 120
	for range rounds {
		var all sync.WaitGroup
		var greeted atomic.Int32
		var failed atomic.Pointer[string]
		for range clients {
			all.Go(func() {
				err := visit(control.addr, &greeted)
				if err != nil {
					text := err.Error()
					failed.Store(&text)
				}
			})
		}
		for greeted.Load() < clients/10 {
			time.Sleep(time.Millisecond)
			if failed.Load() != nil {
				break
			}
		}
		p.signal(syscall.SIGTERM)
		p.ended(exitOK)
		p = serveBerth(t, file, env, files...)
		drainLog(p)
		all.Wait()
		if text := failed.Load(); text != nil {
			t.Fatal(*text)
		}
	}
	p.signal(syscall.SIGTERM)
	p.ended(exitOK)
}

// visit connects, is greeted, says goodbye and is told goodbye.
func visit(addr string, greeted *atomic.Int32) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(replyTime))
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	greeted.Add(1)
	if err == nil && strings.HasPrefix(line, "220 ") {
		io.WriteString(c, "QUIT\r\n")
		if line, err = r.ReadString('\n'); err == nil && strings.HasPrefix(line, "221 ") {
			return nil
		}
	}
	return fmt.Errorf("it said %q, %v", line, err)
}

// --- idle_exit ---

func TestIdleExit(t *testing.T) {
	t.Parallel()
	const config = "server.idle_exit = \"30s\"\n"
	after := func(t *testing.T, b *ftpBox, over chan struct{}) time.Duration {
		t.Helper()
		began := time.Now()
		select {
		case <-over:
		case <-time.After(time.Hour):
		}
		return time.Since(began)
	}
	ends := func(t *testing.T, b *ftpBox, over chan struct{}) {
		t.Helper()
		if took := after(t, b, over); took < 30*time.Second || took > 30*time.Second+2*idleLook {
			t.Errorf("it ends after %v", took)
		}
	}
	stays := func(t *testing.T, b *ftpBox, over chan struct{}) {
		t.Helper()
		if took := after(t, b, over); took != time.Hour {
			t.Errorf("it ends after %v", took)
		}
	}
	t.Run("nobody", func(t *testing.T) {
		inBox(t, config, "", func(t *testing.T, b *ftpBox) {
			b.listenMem(t, true, "control", "tls", "http")
			_, over := b.attends(t)
			ends(t, b, over)
			b.drains().took()
		})
	})
	t.Run("a session", func(t *testing.T) {
		inBox(t, config+"limits.idle = \"2h\"\n", "", func(t *testing.T, b *ftpBox) {
			l := b.listenMem(t, true, "control")[0]
			_, over := b.attends(t)
			c := b.knock(t, l).login()
			time.Sleep(time.Hour) // it stays for him, and takes others all the while
			for range 10 {
				other := b.knock(t, l).login()
				other.cmd("QUIT", "221 *")
				time.Sleep(29 * time.Second)
			}
			c.cmd("QUIT", "221 *")
			ends(t, b, over) // the time begins with the end of the last one
		})
	})
	t.Run("own sockets", func(t *testing.T) {
		inBox(t, config, "", func(t *testing.T, b *ftpBox) {
			b.listenMem(t, false, "control")
			_, over := b.attends(t)
			stays(t, b, over)
			if !strings.Contains(b.log.String(), "server.idle_exit does nothing: no socket came from systemd") {
				t.Errorf("the log does not say why: %s", b.log)
			}
		})
	})
	t.Run("some own sockets", func(t *testing.T) {
		inBox(t, config, "", func(t *testing.T, b *ftpBox) {
			l, err := b.net.listen(netip.AddrPortFrom(testLocal, 0))
			if err != nil {
				t.Fatal(err)
			}
			b.srv.sockets = []socket{{kind: "tls", stream: l}}
			b.listenMem(t, true, "control")
			_, over := b.attends(t)
			ends(t, b, over)
			if want := fmt.Sprintf("tls %s is the daemon's own: while it is not running nobody answers there", l.Addr()); !strings.Contains(b.log.String(), want) {
				t.Errorf("the log has no %q: %s", want, b.log)
			}
		})
	})
	t.Run("off", func(t *testing.T) {
		inBox(t, "", "", func(t *testing.T, b *ftpBox) {
			b.listenMem(t, true, "control")
			_, over := b.attends(t)
			stays(t, b, over)
		})
	})
	t.Run("by a reload", func(t *testing.T) {
		inBox(t, "", "", func(t *testing.T, b *ftpBox) {
			b.listenMem(t, true, "control")
			signals, over := b.attends(t)
			time.Sleep(time.Hour)
			b.reconfigure(t, config)
			signals <- syscall.SIGHUP
			synctest.Wait()
			if took := after(t, b, over); took > 2*idleLook {
				t.Errorf("idle for an hour, it stays for %v", took)
			}
		})
	})
}

// Who connects in the moment of the exit is served, by this daemon or by the next one.
func TestIdleExitLosesNobody(t *testing.T) {
	t.Parallel()
	inBox(t, "server.idle_exit = \"1ms\"\n", "", func(t *testing.T, b *ftpBox) {
		l := b.listenMem(t, true, "control")[0]
		var gone, stayed int
		for i := range 300 {
			time.Sleep(2 * time.Millisecond)
			came := make(chan *ftpClient, 1)
			comes := func() { came <- b.knock(t, l) }
			go comes()
			if i%4 == 0 { // before it, and more or less taken; else in the middle or after
				for range i % 7 {
					runtime.Gosched()
				}
			}
			exits := b.srv.idleExit()
			c := <-came
			if exits {
				gone++
				synctest.Wait() // nobody is there: he waits
				l.mu.Lock()
				waiting := len(l.queue)
				l.mu.Unlock()
				b.srv.mu.Lock()
				sessions := len(b.srv.sessions)
				b.srv.mu.Unlock()
				if waiting != 1 || sessions != 0 {
					t.Fatalf("round %d: it goes, with %d sessions and %d who wait", i, sessions, waiting)
				}
				b.srv.resting.Store(false) // the next daemon
				b.srv.deadline(time.Time{})
				b.srv.serveStream(b.srv.sockets[0])
			} else {
				stayed++
			}
			c.want("220 *")
			c.cmd("QUIT", "221 *")
			synctest.Wait()
		}
		if gone == 0 || stayed == 0 {
			t.Errorf("it went %d times and stayed %d times: nothing has been tried", gone, stayed)
		}
	})
}

// As systemd sees it: exit code 0, and the socket answers by the next one.
func TestIdleExitAndReactivation(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	file, _ := writeConfig(t, daemonListen+"server.idle_exit = \"300ms\"\n")
	control := give(t, "", "control", "tcp")
	env, files := passed(control)
	p := startBerth(t, append(env, m.env()), files, "serve", "--config", file)
	m.hears("READY=1\n*", "STOPPING=1")
	p.ended(exitOK)
	var greeted atomic.Int32
	done := make(chan error, 1)
	go func() { done <- visit(control.addr, &greeted) }()
	p = startBerth(t, env, files, "serve", "--config", file)
	if err := <-done; err != nil {
		t.Error(err)
	}
	p.ended(exitOK)
}
