// server.go is what all sessions share: the listeners and their accept loops,
// who is let in and how many, the accounts, reload and drain. It is apart from
// main.go along the line between the command line and the daemon: nothing here
// reads arguments or prints, and it knows no verb of any protocol.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	rtmetrics "runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

const (
	// acceptPauseMax is the longest wait after accept(2) failed for want of
	// descriptors or memory; net/http uses the same.
	acceptPauseMax = time.Second
	refuseTimeout  = time.Second // for telling a refused client why

	// tidyAfter is how long after the last login or logout memory is looked at,
	// and tidyAbove from how much unused memory on it goes back to the system. A
	// password hash alone leaves 19 MiB behind, which a small box can use better.
	tidyAfter = 1500 * time.Millisecond
	tidyAbove = 2 << 20

	// hookRecount is how soon after an on_upload command a home is counted anew:
	// one count for a burst of them.
	hookRecount = 10 * time.Second
)

// A server is the daemon: what all sessions share. Its sessions are its own to
// end: live returns only when the last one has.
type server struct {
	current    atomic.Pointer[config]
	configPath string
	log        *slog.Logger
	level      *slog.LevelVar
	users      *users
	auth       *authenticator
	keys       *tlsKeeper
	jails      *jailSet
	house      *housekeeper
	hooks      *hookQueue
	launcher   *launcher
	ports      *dataPorts
	metrics    *metrics
	splices    splices
	quick      quickPoll
	hashing    chan struct{} // a place each for digests computed at once
	chat       chat
	ctx        context.Context // ends when the server does
	end        context.CancelFunc
	started    time.Time

	signals chan os.Signal // and what stands for them
	sockets []socket
	tidying *time.Timer

	mu       sync.Mutex // guards what follows; held for moments only
	sessions map[uint64]*session
	byAddr   map[netip.Addr]int
	accounts map[string]*account
	commands int // that run now
	nextID   uint64
	draining bool
	toDrain  bool           // somebody has asked for it
	running  sync.WaitGroup // sessions and serving loops
	hooking  sync.WaitGroup // the on_upload queue
}

// An account is what the sessions of one user share.
type account struct {
	name     string
	sessions int           // this and the limits: guarded by server.mu
	up, down *rate.Limiter // nil: none
	saying   *rate.Limiter
	commands int // that run now
}

// newServer builds everything that can be wrong before a socket is opened: a
// bad configuration never starts half a server.
//
// ownsChildren says that this process has no children but commands.
func newServer(cfg *config, log *slog.Logger, level *slog.LevelVar, ownsChildren bool) (*server, error) {
	if err := os.MkdirAll(cfg.Server.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w; make it, or set server.state_dir to one that can be written", err)
	}
	us, err := loadUsers(cfg.Server.UsersDir, cfg.Server.StateDir, log)
	if err != nil {
		return nil, err
	}
	if err := checkTogether(cfg, us.all()); err != nil {
		return nil, err
	}
	keys, err := newTLSKeeper(cfg.TLS, cfg.Server.StateDir, cfg.Server.Name, log)
	if err != nil {
		return nil, err
	}
	s := &server{
		log: log, level: level, users: us, keys: keys,
		hashing:  make(chan struct{}, max(1, runtime.GOMAXPROCS(0))),
		sessions: map[uint64]*session{}, byAddr: map[netip.Addr]int{}, accounts: map[string]*account{},
		started: time.Now(), signals: make(chan os.Signal, 4),
	}
	s.ports = newDataPorts(&s.quick)
	s.ctx, s.end = context.WithCancel(context.Background())
	s.current.Store(cfg)
	s.jails = newJailSet(newLedger(cfg.Server.StateDir, log))
	s.launcher = newLauncher(log, ownsChildren)
	s.house = newHousekeeper(s.ctx, us, s.jails, s.config, log)
	s.tidying = time.AfterFunc(tidyAfter, s.tidy)
	v, rev := buildVersion()
	s.metrics = newMetrics(v, rev, metricSources{
		StateFree:         func() (uint64, error) { return freeBytes(cfg.Server.StateDir) },
		CertificateExpiry: keys.notAfter,
		Bans:              func() int { return s.auth.bans() },
		Usage:             s.usage,
		UploadHooks:       func() int { return s.hooks.len() },
	})
	s.hooks, err = newHookQueue(filepath.Join(cfg.Server.StateDir, "on_upload"), s.config, log, hookSinks{
		launch: s.launch, sandbox: s.hookSandbox, ran: s.metrics.commandRun, lost: s.metrics.uploadHookLost,
		after: func(user string) { s.house.attend(user, time.Now().Add(hookRecount)) }})
	if err != nil {
		return nil, err
	}
	keys.onReuse = s.metrics.tlsResumption
	s.auth = newAuthenticator(us, cfg.Limits, log, s.metrics.login)
	return s, nil
}

// checkTogether finds what is wrong between the configuration and the users:
// commands that a user may run and nobody has defined, or that cannot be run so.
func checkTogether(cfg *config, us []*user) error {
	var errs configErrors
	for _, u := range us {
		wrong := func(key, problem string) {
			file := filepath.Join(cfg.Server.UsersDir, u.Name+".toml")
			data, _ := os.ReadFile(file)
			errs = append(errs, configError{File: file, Line: lineOf(data, key), Key: key, Problem: problem})
		}
		for _, name := range u.Commands {
			if _, ok := cfg.Commands[name]; !ok {
				wrong("commands", fmt.Sprintf("there is no command %s; define it as [commands.NAME] in the configuration", configQuote(name)))
			}
		}
		if u.OnUpload != "" {
			if problem := onUploadProblem(cfg, u.OnUpload); problem != "" {
				wrong("on_upload", problem)
			}
		}
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}

// configNotYet tells what the configuration asks for that this version only checks.
func configNotYet(cfg *config) []string {
	var keys []string
	if cfg.Server.IdleExit > 0 {
		keys = append(keys, "server.idle_exit")
	}
	return keys
}

// usage is what the quota metrics show: every user whose files are counted.
func (s *server) usage() []userUsage {
	var all []userUsage
	for _, u := range s.users.all() {
		if u.Quota == "filesystem" {
			continue
		}
		line := userUsage{Name: u.Name, QuotaBytes: int64(u.QuotaBytes), QuotaFiles: u.QuotaFiles}
		if b := s.jails.ledger.user(u.Name); b != nil {
			var known bool
			if line.UsedBytes, line.UsedFiles, known = b.usage(); !known {
				continue
			}
		} else if _, err := os.Stat(u.Home); !errors.Is(err, os.ErrNotExist) {
			continue // not looked at yet; who has no home stores nothing
		}
		all = append(all, line)
	}
	return all
}

func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// tidy gives memory back after a burst. Left alone the runtime does so too, but
// only at its next collection, which an idle box may not see for minutes.
func (s *server) tidy() {
	sample := []rtmetrics.Sample{{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}}
	rtmetrics.Read(sample)
	unused := sample[0].Value.Uint64() + sample[1].Value.Uint64() - min(sample[1].Value.Uint64(), sample[2].Value.Uint64())
	if unused > tidyAbove {
		runtime.GC() // pools keep what they hold through one collection
		debug.FreeOSMemory()
	}
}

// hookSandbox is what on_upload may reach for a user, by the configuration of now.
func (s *server) hookSandbox(name, command string) *sandbox {
	cfg := s.config()
	if cfg.Exec.Sandbox == "off" {
		return nil
	}
	u := s.users.get(name)
	if u == nil { // removed since; what he left behind is still worked on, with nothing of his
		return &sandbox{BestEffort: cfg.Exec.Sandbox == "best-effort", Read: rawTexts(cfg.Exec.Read), Write: rawTexts(cfg.Exec.Write)}
	}
	c := cfg.Commands[command]
	return userSandbox(cfg, u, slices.Concat(cfg.Exec.Read, c.Read), slices.Concat(cfg.Exec.Write, c.Write))
}

// launch runs a program: here, or in the runner.
func (s *server) launch(ctx context.Context, p program, io programIO) programResult {
	if path, ok := strings.CutPrefix(s.config().Exec.Runner, commandRunnerScheme); ok {
		return runnerLaunch(ctx, path, p, io)
	}
	return s.launcher.run(ctx, p, io)
}

func (s *server) config() *config { return s.current.Load() }
func (s *server) debug() bool     { return s.level.Level() <= slog.LevelDebug }

// live serves until SIGTERM or SIGINT, drains, and returns the exit code.
// ready is called when every listener answers.
func (s *server) live(ready func()) int {
	signals := s.signals
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)
	s.serve()
	daemon.SdNotify(false, daemon.SdNotifyReady)
	if ready != nil {
		ready()
	}
	for sig := range signals {
		if sig == syscall.SIGHUP {
			s.reload()
			continue
		}
		break
	}
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	s.shutdown(signals)
	return exitOK
}

// reload reads configuration, users and certificate again, all or nothing.
func (s *server) reload() error {
	err := func() error {
		if s.configPath == "" {
			return s.users.reload(nil)
		}
		cfg, err := loadConfig(s.configPath)
		if err != nil {
			return err
		}
		old := s.config()
		if cfg.Server.UsersDir != old.Server.UsersDir || cfg.Server.StateDir != old.Server.StateDir {
			return errors.New("server.users_dir and server.state_dir can change only at a restart")
		}
		if t, o := cfg.TLS, old.TLS; t.Certificate != o.Certificate || t.Key != o.Key || t.ClientCA != o.ClientCA || t.SessionReuse != o.SessionReuse {
			return errors.New("tls.certificate, key, client_ca and session_reuse can change only at a restart; new files under the old names need none")
		}
		if !reflect.DeepEqual(cfg.Listen, old.Listen) {
			return errors.New("[listen] can change only at a restart")
		}
		if err := s.users.reload(func(us []*user) error {
			if err := checkTogether(cfg, us); err != nil {
				return err
			}
			return s.keys.reload()
		}); err != nil {
			return err
		}
		s.auth.setLimits(cfg.Limits)
		s.level.Set(logLevel(cfg.Log.Level))
		s.current.Store(cfg)
		return nil
	}()
	s.metrics.configReloaded(err == nil)
	if err != nil {
		s.log.Error("reload refused, the old configuration stays", "error", err)
		return err
	}
	s.hooks.retryNow() // what failed may be what was mended
	s.log.Info("reloaded")
	return nil
}

// shutdown drains: no new sessions, idle ones end, transfers may finish for
// the time that server.drain gives. Another signal ends it at once.
func (s *server) shutdown(signals <-chan os.Signal) {
	s.mu.Lock()
	s.draining = true
	left := make([]*session, 0, len(s.sessions))
	for _, c := range s.sessions {
		left = append(left, c)
	}
	s.mu.Unlock()
	s.log.Info("draining", "sessions", len(left), "most", s.config().Server.Drain.std())
	for _, k := range s.sockets {
		k.close()
	}
	for _, c := range left {
		c.drain()
	}
	done := make(chan struct{})
	go func() { s.running.Wait(); close(done) }()
	t := time.NewTimer(s.config().Server.Drain.std())
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	case <-signals:
	}
	s.end() // logins that are being checked, and datagram services
	s.mu.Lock()
	for _, c := range s.sessions {
		c.kill()
	}
	s.mu.Unlock()
	// A command has its own time to end, and none may outlive the daemon.
	wait := 2 * closeTimeout
	s.mu.Lock()
	if s.commands > 0 {
		wait += s.config().Exec.KillAfter.std() + programGone
	}
	s.mu.Unlock()
	select {
	case <-done:
	case <-time.After(wait):
		s.log.Warn("some sessions did not end in time")
	}
	s.mu.Lock()
	quiet := len(s.sessions) == 0
	s.mu.Unlock()
	s.house.end(quiet)
	s.hooking.Wait()
	s.tidying.Stop()
	s.log.Info("stopped", "uptime", time.Since(s.started).Round(time.Second))
}

// --- sockets ---

// A socket is one listener with the name of its kind (contract section 3).
type socket struct {
	kind   string // control, tls, http, local, datagram or local-datagram
	stream net.Listener
	packet net.PacketConn
}

func (k socket) addr() net.Addr {
	if k.stream != nil {
		return k.stream.Addr()
	}
	return k.packet.LocalAddr()
}

func (k socket) close() {
	if k.stream != nil {
		k.stream.Close()
	} else {
		k.packet.Close()
	}
}

// openSockets opens what [listen] names. With inherit, sockets from systemd
// take the place of the configured ones of the same name. On an error nothing
// stays open.
func (s *server) openSockets(inherit bool) (err error) {
	defer func() {
		if err != nil {
			for _, k := range s.sockets {
				k.close()
			}
			s.sockets = nil
		}
	}()
	given := map[string]bool{}
	if inherit {
		// One pass for all: activation's helpers for streams and for packets
		// each use up the environment. Try it by hand with
		// systemd-socket-activate -l 2121 --fdname=control berth serve
		for _, f := range activation.Files(true) {
			k, err := inherited(f)
			if err != nil {
				return err
			}
			given[k.kind] = true
			s.sockets = append(s.sockets, k)
		}
	}
	l := s.config().Listen
	var lc net.ListenConfig
	for _, want := range []struct {
		kind, network string
		addrs         []string
	}{
		{"control", "tcp", l.Control}, {"tls", "tcp", l.TLS}, {"http", "tcp", l.HTTP},
		{"local", "unix", l.Local}, {"datagram", "udp", l.Datagram}, {"local-datagram", "unixgram", l.LocalDatagram},
	} {
		if given[want.kind] {
			continue
		}
		for _, addr := range want.addrs {
			k := socket{kind: want.kind}
			var err error
			if strings.HasPrefix(want.network, "unix") {
				if err = clearStale(want.network, addr); err != nil {
					return fmt.Errorf("listen.%s: %w", want.kind, err)
				}
			}
			switch want.network {
			case "tcp", "unix":
				k.stream, err = lc.Listen(s.ctx, want.network, addr)
			default:
				k.packet, err = lc.ListenPacket(s.ctx, want.network, addr)
			}
			if err == nil && strings.HasPrefix(want.network, "unix") {
				// Everyone may knock: the kernel tells who it is, and the users' files
				// say who may come in.
				err = os.Chmod(addr, 0o666)
			}
			if err != nil {
				return fmt.Errorf("listen.%s: %w", strings.ReplaceAll(want.kind, "-", "_"), err)
			}
			s.sockets = append(s.sockets, k)
		}
	}
	return nil
}

// inherited makes a socket of a descriptor that systemd passed.
func inherited(f *os.File) (socket, error) {
	defer f.Close()
	k := socket{kind: f.Name()}
	stream := true
	switch k.kind {
	case "control", "tls", "http", "local":
	case "datagram", "local-datagram":
		stream = false
	default:
		return k, fmt.Errorf("systemd passed a socket named %q; FileDescriptorName= must be control, tls, datagram, local, local-datagram or http", k.kind)
	}
	var err error
	if stream {
		k.stream, err = net.FileListener(f)
	} else {
		k.packet, err = net.FilePacketConn(f)
	}
	if err != nil {
		return k, fmt.Errorf("socket %q from systemd is not of the right kind: %w", k.kind, err)
	}
	return k, nil
}

// clearStale removes a socket file that nobody listens on any more, and makes
// its directory. A file that is no socket, or one that answers, stays.
func clearStale(network, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	st, err := os.Lstat(path)
	if err != nil {
		return nil
	}
	if st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s exists and is no socket", path)
	}
	if c, err := net.Dial(network, path); err == nil {
		c.Close()
		return fmt.Errorf("another program answers on %s", path)
	}
	return os.Remove(path)
}

// serve starts a loop for every socket.
func (s *server) serve() {
	s.house.start()
	s.hooking.Go(func() { s.hooks.run(s.ctx) })
	names := make([]string, 0, len(s.sockets))
	var d *datagramService
	for _, k := range s.sockets {
		names = append(names, k.kind+"="+k.addr().String())
		switch k.kind {
		case "control", "tls", "local":
			s.running.Go(func() { s.accept(k) })
		case "http":
			s.running.Go(func() { s.serveHTTP(k) })
		default:
			if d == nil { // one for all sockets, as its limits are
				d = newDatagramService(s.hello, s.metrics.datagram, s.log)
			}
			s.running.Go(func() {
				if err := d.serve(s.ctx, k.packet); err != nil && !errors.Is(err, net.ErrClosed) {
					s.log.Error("datagram service ended", "error", err)
				}
			})
		}
	}
	if keys := configNotYet(s.config()); len(keys) > 0 {
		s.log.Warn("not done by this version", "keys", strings.Join(keys, ","))
	}
	if e := s.config().Exec; e.Runner == "" && sandboxProblem(e.Sandbox) != nil {
		s.log.Warn("commands will be refused", "sandbox", sandboxState(e))
	}
	for _, note := range commandNotes(s.config(), s.users.all()) {
		s.log.Warn("commands", "note", note)
	}
	v, _ := buildVersion()
	s.log.Info("serving", "version", v, "listeners", strings.Join(names, " "), "config", s.configPath, "sandbox", sandboxState(s.config().Exec))
}

func (s *server) hello() helloInfo {
	v, _ := buildVersion()
	h := helloInfo{Name: s.config().Server.Name, Version: v, Fingerprint: s.keys.fingerprint()}
	for _, k := range s.sockets {
		a, err := netip.ParseAddrPort(k.addr().String())
		if err != nil || a.Addr().IsLoopback() {
			continue // a unix socket, or nothing that another machine could use
		}
		switch k.kind {
		case "control":
			h.Ports.Control = int(a.Port())
		case "tls":
			h.Ports.TLS = int(a.Port())
		case "datagram":
			h.Ports.Datagram = int(a.Port())
		}
	}
	return h
}

// serveHTTP answers Prometheus and health checks until the listener closes, and
// lets the answers under way finish.
func (s *server) serveHTTP(k socket) {
	h := newHTTPServer(s.metrics.handler(s.ready, s.statusPage), s.metrics.panics.Inc, s.log)
	stop := context.AfterFunc(s.ctx, h.close)
	defer stop()
	s.acceptFor(k, h.serve)
	h.shutdown()
}

func (s *server) ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return errors.New("draining")
	}
	return nil
}

// drainOnce is true for the first who asks for a drain.
func (s *server) drainOnce() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := !s.draining && !s.toDrain
	s.toDrain = true
	return first
}

func (s *server) statusPage(w io.Writer) {
	s.mu.Lock()
	n := len(s.sessions)
	s.mu.Unlock()
	fmt.Fprintf(w, "sessions %d", n)
}

// accept begins a session for each connection until the listener closes.
func (s *server) accept(k socket) {
	s.acceptFor(k, func(c net.Conn) { s.begin(c, k.kind) })
}

// acceptFor takes connections until the listener closes, and gives each to take
// on a goroutine of its own. Trouble with one connection, or a lack of
// descriptors, never ends it.
func (s *server) acceptFor(k socket, take func(net.Conn)) {
	pause := time.Duration(0)
	for {
		c, err := k.stream.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			s.metrics.acceptErrors.Inc()
			if pause = min(max(2*pause, 5*time.Millisecond), acceptPauseMax); pause >= 40*time.Millisecond {
				s.log.Warn("cannot accept connections", "listener", k.kind, "error", err, "retry", pause)
			}
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
				return
			}
			continue
		}
		pause = 0
		go take(c)
	}
}

// begin admits one connection, or tells it why not, and runs its session.
func (s *server) begin(c net.Conn, kind string) {
	ses := &session{srv: s, conn: c, bare: c, proto: "ftp", started: time.Now(), allo: -1}
	switch a := c.RemoteAddr().(type) {
	case *net.TCPAddr:
		ses.peer = a.AddrPort().Addr().Unmap().WithZone("")
		ses.local = addrWithZone(c.LocalAddr())
		inlineUrgent(c)
	default:
		ses.proto = "local"
		var pid int
		ses.localUID, pid, ses.hasUID = peerCredentials(c)
		if ses.hasUID && s.launcher.ours(pid) {
			// A user's command runs under the daemon's own uid, which must not make
			// him its operator, nor anybody else.
			ses.hasUID = false
		}
	}
	if text := s.admit(ses); text != "" {
		s.metrics.sessionRefused(ses.proto)
		s.log.Info("refused", "addr", ses.addrText(), "proto", ses.proto, "result", text)
		if kind != "tls" {
			c.SetWriteDeadline(time.Now().Add(refuseTimeout))
			fmt.Fprintf(c, "%d %s\r\n", codeClosing, text)
		}
		c.Close()
		return
	}
	defer func() {
		if v := recover(); v != nil {
			ses.panicked(v)
		}
	}()
	if kind == "tls" {
		if err := ses.startTLS(true); err != nil {
			ses.finish("tls")
			return
		}
	}
	s.metrics.sessionStarted(ses.proto)
	ses.counting = true
	ses.serveControl()
}

// addrWithZone is the local address data connections are opened on.
func addrWithZone(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// inlineUrgent keeps urgent data in the stream, where the line reader knows
// what to do with it: lftp and tnftp send ABOR's data mark so.
func inlineUrgent(c net.Conn) {
	if sc, ok := c.(syscall.Conn); ok {
		if rc, err := sc.SyscallConn(); err == nil {
			rc.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) })
		}
	}
}

// peerCredentials asks the kernel who is at the other end of a unix socket (unix(7)).
func peerCredentials(c net.Conn) (uid uint32, pid int, ok bool) {
	sc, isConn := c.(syscall.Conn)
	if !isConn {
		return 0, 0, false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return 0, 0, false
	}
	rc.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid, pid, ok = cred.Uid, int(cred.Pid), true
		}
	})
	return uid, pid, ok
}

// admit counts a new session, or says why it cannot be. The text for limits
// begins as lftp and others know it, who then wait and try again.
func (s *server) admit(c *session) (refusal string) {
	cfg := s.config()
	if c.peer.IsValid() {
		if !filterAllows(cfg.Filter, c.peer) {
			return "Connections from your address are not accepted."
		}
		if left, banned := s.auth.banned(c.peer); banned {
			return fmt.Sprintf("Too many failed logins from your address; try again in %s.", left.Round(time.Second))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.draining:
		return "The server is going down; try again later."
	case c.peer.IsValid() && s.byAddr[c.peer] >= cfg.Limits.SessionsPerAddress:
		return fmt.Sprintf("Too many connections from your address: at most %d.", cfg.Limits.SessionsPerAddress)
	case c.peer.IsValid() && len(s.sessions) >= cfg.Limits.Sessions: // the local socket always has a place
		return fmt.Sprintf("Too many connections: at most %d; try again later.", cfg.Limits.Sessions)
	}
	s.quick.busy.Add(1)
	s.nextID++
	c.id = s.nextID
	s.sessions[c.id] = c
	if c.peer.IsValid() {
		s.byAddr[c.peer]++
	}
	s.running.Add(1)
	return ""
}

// filterAllows applies [filter]: denied before allowed, everyone if neither.
func filterAllows(f filterConfig, a netip.Addr) bool {
	for _, n := range f.DenyFrom {
		if n.contains(a) {
			return false
		}
	}
	for _, n := range f.AllowFrom {
		if n.contains(a) {
			return true
		}
	}
	return len(f.AllowFrom) == 0
}

// ended takes a session off the books.
func (s *server) ended(c *session, result string) {
	s.mu.Lock()
	delete(s.sessions, c.id)
	if c.peer.IsValid() {
		if s.byAddr[c.peer]--; s.byAddr[c.peer] == 0 {
			delete(s.byAddr, c.peer)
		}
	}
	s.mu.Unlock()
	if c.counting {
		s.metrics.sessionEnded(c.proto, result)
	}
	s.running.Done()
}

var errTooMany = errors.New("too many sessions of one user")

// enter counts a session as the user's. Limits of rate hold for all of a
// user's sessions together and follow his file at each login.
func (s *server) enter(u *user) (*account, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[u.Name]
	if a == nil {
		a = &account{name: u.Name}
		s.accounts[u.Name] = a
	}
	if u.Sessions > 0 && a.sessions >= u.Sessions {
		return nil, errTooMany
	}
	a.sessions++
	s.tidying.Reset(tidyAfter)
	a.up = adjust(a.up, int64(u.UploadRate))
	a.down = adjust(a.down, int64(u.DownloadRate))
	return a, nil
}

func adjust(l *rate.Limiter, perSecond int64) *rate.Limiter {
	if l == nil || perSecond <= 0 || l.Limit() != rate.Limit(perSecond) {
		return newLimiter(perSecond)
	}
	return l
}

// jailSpec is what fs.go needs to know of a user.
func (us *users) jailSpec(u *user) jailSpec {
	spec := jailSpec{user: u.Name, home: u.Home, quota: u.limit(),
		uncounted: u.Quota == "filesystem", rotate: u.WhenFull == "rotate"}
	if len(u.Shares) == 0 {
		return spec
	}
	spec.shares = make(map[string]shareSpec, len(u.Shares))
	for name, sh := range u.Shares {
		s := shareSpec{path: sh.Path, write: sh.Write}
		us.known(func(o *user) {
			if o.Quota != "filesystem" && (sh.Path == o.Home || strings.HasPrefix(sh.Path, o.Home+"/")) {
				s.inHome, s.quota = o.Name, o.limit()
			}
		})
		spec.shares[name] = s
	}
	return spec
}

// limit is a user's quota.
func (u *user) limit() quota { return quota{int64(u.QuotaBytes), u.QuotaFiles} }

// leave is enter's end.
func (s *server) leave(a *account) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tidying.Reset(tidyAfter)
	if a.sessions--; a.sessions == 0 {
		delete(s.accounts, a.name)
	}
}

// passiveAddress is what PASV tells this client: the rule of his network, the
// longest if many fit, the address for all, or the control connection's own.
func (s *server) passiveAddress(peer, local netip.Addr) (netip.Addr, error) {
	cfg := s.config().Passive
	tell, longest := cfg.Address, -1
	for _, rule := range cfg.For {
		if bits := rule.Network.Bits(); rule.Network.contains(peer) && bits > longest {
			tell, longest = rule.Address, bits
		}
	}
	if tell == "" {
		return local, nil
	}
	if a, err := netip.ParseAddr(tell); err == nil {
		if !a.Is4() {
			return local, nil // PASV has no room for it; EPSV tells no address
		}
		return a, nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
	defer cancel()
	as, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", tell)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("passive address: %w", err)
	}
	return as[0].Unmap(), nil
}
