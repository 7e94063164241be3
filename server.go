// server.go is what all sessions share: the listeners and their accept loops,
// who is let in and how many, the accounts, reload and drain. It is apart from
// main.go along the line between the command line and the daemon: nothing here
// reads arguments or prints, and it knows no verb of any protocol.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	rtmetrics "runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

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

	// adminGroup is whose members have the operator's requests on the local socket.
	adminGroup = "berth-admin"
	maxGroups  = 65536 // NGROUPS_MAX, getgroups(2)

	// hookRecount is how soon after an on_upload command a home is counted anew:
	// one count for a burst of them.
	hookRecount = 10 * time.Second
)

// A server is the daemon: what all sessions share. Its sessions are its own to
// end: live returns only when the last one has.
type server struct {
	current     atomic.Pointer[config]
	configPath  string
	log         *slog.Logger
	recent      *recentEvents // what log has said of late
	level       *slog.LevelVar
	users       *users
	auth        *authenticator
	keys        *tlsKeeper
	jails       *jailSet
	house       *housekeeper
	hooks       *hookQueue
	launcher    *launcher
	ports       *dataPorts
	metrics     *metrics
	splices     splices
	quick       quickPoll
	hashing     chan struct{} // a place each for digests computed at once
	digestQueue atomic.Int32  // requests that wait for one
	lookUsers   patientLook
	lookFree    patientLook
	free        atomic.Pointer[freeSpace] // what lookFree has found
	chat        chat
	lessons     lessons
	ctx         context.Context // ends when the server does
	end         context.CancelFunc
	started     time.Time

	signals   chan os.Signal // and what stands for them
	sockets   []socket
	accepting sync.WaitGroup // the loops of the stream sockets, but http
	asking    sync.WaitGroup // the loops of the http sockets, which a drain ends last
	answering sync.WaitGroup // and what they have begun
	taking    sync.WaitGroup // connections that are not yet sessions
	resting   atomic.Bool    // the loops are to end, and may be begun again
	drainAt   atomic.Int64   // when the drain began, in Unix nanoseconds; 0: not yet
	probes    probes
	pages     *pages
	systemd   notifier
	reloads   atomic.Uint64 // that were taken
	tidying   *time.Timer

	logLimit    *limitHandler // nil: everything is logged
	transferLog *transferLog  // nil: there is none

	reloading mutex   // one reload at a time; guards told
	told      []*user // the users that the log knows of

	mu       mutex // guards what follows; held for moments only
	sessions map[uint64]*session
	byAddr   map[netip.Addr]int
	byUID    map[uint32]int // on the local socket
	accounts map[string]*account
	commands int // that run now
	nextID   uint64
	draining bool
	toDrain  bool           // somebody has asked for it
	quietAt  time.Time      // when the last session ended, or the server began
	refused  string         // why the last reload was, "" if it was not
	loaded   time.Time      // when the configuration that is in use was
	running  sync.WaitGroup // sessions and serving loops
	late     sync.WaitGroup // sessions of operators, for which a drain does not wait
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
	limit, recent := limitOf(log), newRecentLog(log.Handler())
	limit.through(recent)
	log = slog.New(recent)
	if err := os.MkdirAll(cfg.Server.StateDir, 0o700); err != nil {
		return nil, errorf("state directory: %w; make it, or set server.state_dir to one that can be written", err)
	}
	if err := unix.Access(cfg.Server.StateDir, unix.W_OK|unix.X_OK); err != nil {
		return nil, errorf("state directory %s: uid %d may not write in it (%w); chown it to that uid, or set server.state_dir", cfg.Server.StateDir, os.Geteuid(), err)
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
		log: log, recent: recent.events, level: level, users: us, keys: keys,
		hashing:  make(chan struct{}, max(1, runtime.GOMAXPROCS(0))),
		sessions: map[uint64]*session{}, byAddr: map[netip.Addr]int{}, byUID: map[uint32]int{}, accounts: map[string]*account{},
		started: time.Now(), loaded: time.Now(), quietAt: time.Now(), signals: make(chan os.Signal, 4),
	}
	s.lookFree.grace = stuckAfter
	s.ports = newDataPorts(&s.quick)
	s.logLimit = limit
	s.transferLog = newTransferLog(cfg.Log.Transfers, log)
	s.ctx, s.end = context.WithCancel(context.Background())
	s.current.Store(cfg)
	s.jails = newJailSet(newLedger(cfg.Server.StateDir, log))
	s.launcher = newLauncher(log, ownsChildren)
	s.house = newHousekeeper(s.ctx, us, s.jails, s.config, log)
	s.tidying = time.AfterFunc(tidyAfter, s.tidy)
	v, rev := buildVersion()
	s.metrics = newMetrics(v, rev, s.metricSources(cfg))
	s.tellCommands()
	s.logLimit.count(s.metrics.logSuppressed)
	s.hooks, err = newHookQueue(filepath.Join(cfg.Server.StateDir, "on_upload"), s.config, log, hookSinks{
		others: errors.Is(s.jails.ledger.noLock, unix.EWOULDBLOCK),
		launch: s.launch, sandbox: s.hookSandbox, ran: s.metrics.commandRun, lost: s.metrics.uploadHookLost,
		after: func(user string) { s.house.attend(user, time.Now().Add(hookRecount)) }})
	if err != nil {
		return nil, err
	}
	s.pages = newPages(s)
	keys.onReuse = s.metrics.tlsResumption
	s.auth = newAuthenticator(us, cfg.Limits, log, s.metrics.login)
	s.auth.failed = s.metrics.loginFailed
	s.told = us.all()
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
	if path, ok := cutPrefix(s.config().Exec.Runner, commandRunnerScheme); ok {
		return runnerLaunch(ctx, path, p, io)
	}
	return s.launcher.run(ctx, p, io)
}

func (s *server) config() *config { return s.current.Load() }
func (s *server) debug() bool     { return s.level.Level() <= slog.LevelDebug }

// --- serving ---

// open opens the listeners, see openSockets.
func (s *server) open(inherit bool) (err error) {
	s.sockets, err = openSockets(s.ctx, &s.config().Listen, inherit, s.log)
	return err
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
		case "control", "tls", "local", "http":
			s.serveStream(k)
		default:
			if d == nil { // one for all sockets, as its limits are
				d = newDatagramService(s.hello, s.metrics.datagram, s.log)
				d.allowed = func(a netip.Addr) bool { return filterAllows(s.config().Filter, a) }
			}
			s.running.Go(func() {
				if err := d.serve(s.ctx, k.packet); err != nil && !errors.Is(err, net.ErrClosed) {
					s.log.Error("datagram service ended", "error", err)
				}
			})
		}
	}
	for _, note := range s.idleExitNotes() {
		s.log.Warn("idle exit", "note", note)
	}
	if e := s.config().Exec; e.Runner == "" && sandboxProblem(e.Sandbox) != nil {
		s.log.Warn("commands will be refused", "sandbox", sandboxState(e))
	}
	for _, note := range httpNotes(s.config(), s.users.all()) {
		s.log.Warn("pages", "note", note)
	}
	for _, note := range commandNotes(s.config(), s.users.all(), os.Geteuid() == 0) {
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

// serveStream begins the loop of one stream socket.
func (s *server) serveStream(k socket) {
	if k.kind == "http" {
		s.servePages(k)
		return
	}
	s.accepting.Add(1)
	s.running.Go(func() {
		defer s.accepting.Done()
		s.accept(k)
	})
}

// servePages begins the loop of one http socket. Answers under way when it ends are
// finished.
func (s *server) servePages(k socket) {
	ip, _ := netip.ParseAddrPort(k.addr().String())
	h := newHTTPServer(func(a *httpAnswer, q *httpRequest) {
		q.here = ip.Addr().Unmap().IsLoopback()
		s.pages.answer(a, q)
	}, s.metrics.panics.Inc, s.log)
	h.answered = s.metrics.httpAnswered
	if s.config().HTTP.TLS {
		h.secure = s.keys.pages
	}
	s.asking.Add(1)
	s.answering.Go(func() {
		stop := context.AfterFunc(s.ctx, h.close)
		defer stop()
		s.acceptFor(k, h.serve)
		s.asking.Done()
		h.shutdown()
	})
}

// drainOnce is true for the first who asks for a drain.
func (s *server) drainOnce() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := !s.draining && !s.toDrain
	s.toDrain = true
	return first
}

// accept begins a session for each connection until the listener closes or rests.
func (s *server) accept(k socket) {
	s.acceptFor(k, func(c net.Conn) { s.begin(c, k.kind) })
}

// acceptFor takes connections until the listener closes or rests, and gives each
// to take on a goroutine of its own. Trouble with one connection, or a lack of
// descriptors, never ends it.
func (s *server) acceptFor(k socket, take func(net.Conn)) {
	pause := time.Duration(0)
	for {
		c, err := k.stream.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || s.resting.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			ended := errors.Is(err, unix.EINVAL) // accept(2): it does not listen
			switch {
			case lacking(err):
				s.lacked()
			default:
				s.metrics.acceptErrors.Inc()
				if ended {
					s.listenAgain(k)
				}
			}
			if pause = min(max(2*pause, 5*time.Millisecond), acceptPauseMax); pause >= 40*time.Millisecond || ended {
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
		if k.kind == "http" || k.kind == lateListener {
			s.answering.Go(func() {
				if !s.probed(c) {
					take(c)
				}
			})
			continue
		}
		// A connection that was taken keeps the drain waiting: it becomes a session,
		// and is not lost between this loop and the list of those.
		s.taking.Add(1)
		s.running.Go(func() {
			defer s.taking.Done()
			if !s.probed(c) {
				take(c)
			}
		})
	}
}

// lacking tells whether accept(2) failed for want of descriptors or memory.
func lacking(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM)
}

// lacked notes that a connection found no descriptor, or none but those that are kept.
func (s *server) lacked() {
	s.metrics.acceptErrors.Inc()
	s.probes.short.Store(int64(time.Since(s.started)))
}

// listenAgain makes a TCP socket listen that somebody else has ended: "ss -K" does that
// to all that match, and so does shutdown(2) by whoever else holds it. Without this every
// client would be refused until a restart, and one that systemd gave would be as dead
// after that.
func (s *server) listenAgain(k socket) {
	at, err := netip.ParseAddrPort(k.addr().String())
	if err != nil {
		return
	}
	sa, _ := sockaddr(at)
	onDescriptor(k.stream, func(fd int) error {
		listen := func() error {
			unix.Bind(fd, sa) // it has its port still, unless the kernel chose that
			return unix.Listen(fd, cmp.Or(s.config().Listen.Backlog, maxBacklog))
		}
		listen()
		// What "ss -K" ended would pass its end on to every connection: the kernel
		// takes that back when a socket that listens is shut down.
		unix.Shutdown(fd, unix.SHUT_RD)
		return listen()
	})
}

// begin admits one connection, or tells it why not, and begins its session, which
// runs on after begin has returned.
func (s *server) begin(c net.Conn, kind string) {
	ses := &session{srv: s, conn: c, bare: c, proto: "ftp", started: time.Now(), allo: -1}
	switch a := c.RemoteAddr().(type) {
	case *net.TCPAddr:
		ses.peer = a.AddrPort().Addr().Unmap().WithZone("")
		ses.local = addrWithZone(c.LocalAddr())
		ses.reached = ses.local
		inlineUrgent(c)
		if s.config().Listen.proxiedBy(ses.peer) {
			p, err := readProxyHeader(c)
			if err != nil {
				s.metrics.sessionRefused(ses.proto)
				level := slog.LevelWarn
				if errors.Is(err, io.EOF) { // that is how a load balancer asks whether we are well
					level = slog.LevelDebug
				}
				s.log.Log(s.ctx, level, "refused", "addr", ses.addrText(), "proto", ses.proto, "result", err.Error())
				c.Close()
				return
			}
			if p.from.IsValid() {
				ses.via, ses.peer, ses.reached = ses.peer, p.from.Addr(), p.to.Addr()
			}
		}
	default:
		ses.proto = "local"
		var p peer
		if p, ses.hasUID = peerCredentials(c); ses.hasUID && p.uid == uint32(os.Geteuid()) && s.launcher.ours(p.pid) {
			// A user's command runs under the daemon's own uid, which must not make
			// him its operator, nor anybody else. Processes of other uids are none of
			// these, and cannot be looked at where ProtectProc=invisible hides them.
			ses.hasUID = false
		}
		ses.localUID = p.uid
		ses.isOperator = ses.hasUID && p.operates()
		if kind == lateListener {
			ses.late.Store(true)
			ses.hasUID = false // nobody logs in any more, be it by his uid
		}
	}
	text := ""
	if !ses.isOperator && crowded(2) {
		s.lacked()
		text = "Too many connections: no file descriptor is free; try again later."
	} else {
		text = s.admit(ses)
	}
	if text != "" {
		s.metrics.sessionRefused(ses.proto)
		s.log.Info("refused", "addr", ses.addrText(), "proto", ses.proto, "result", text)
		if kind != "tls" {
			c.SetWriteDeadline(time.Now().Add(refuseTimeout))
			fmt.Fprintf(c, "%d %s\r\n", codeClosing, text)
		}
		c.Close()
		return
	}
	if kind == "tls" {
		go ses.begin(true) // a handshake takes as long as the client does
		return
	}
	ses.begin(false)
}

// begin makes the TLS connection, if that comes first, and begins the session.
func (s *session) begin(secure bool) {
	defer func() {
		if v := recover(); v != nil {
			s.panicked(v)
		}
	}()
	s.tapes(0, "")
	if secure {
		if err := s.startTLS(true); err != nil {
			s.finish("tls")
			return
		}
	}
	s.srv.metrics.sessionStarted(s.proto)
	s.counting = true
	s.serveControl()
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
	onDescriptor(c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) })
}

// A peer is who is at the other end of a unix socket, by the kernel's word (unix(7)).
type peer struct {
	uid, gid uint32
	pid      int
	groups   []uint32 // his others, in which he was when he connected
}

func peerCredentials(c net.Conn) (p peer, ok bool) {
	err := onDescriptor(c, func(fd int) error {
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return err
		}
		p = peer{uid: cred.Uid, gid: cred.Gid, pid: int(cred.Pid)}
		p.groups = peerGroups(fd)
		return nil
	})
	return p, err == nil
}

// operates tells whether p has the operator's requests: root, who runs the daemon,
// and the members of adminGroup. The group is looked up each time, as people are
// taken out of groups while daemons run.
func (p *peer) operates() bool {
	if p.uid == 0 || p.uid == uint32(os.Geteuid()) {
		return true
	}
	gid, err := groupID(adminGroup)
	return err == nil && (p.gid == uint32(gid) || slices.Contains(p.groups, uint32(gid)))
}

// peerGroups asks for the groups of the peer; none where the kernel, before 4.13,
// cannot tell.
func peerGroups(fd int) []uint32 {
	for n := 32; n <= maxGroups; n *= 8 {
		groups := make([]uint32, n)
		size := uint32(n * 4)
		_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch e {
		case 0:
			return groups[:size/4]
		case unix.ERANGE:
			continue
		}
		break
	}
	return nil
}

// admit counts a new session, or says why it cannot be. The text for limits
// begins as lftp and others know it, who then wait and try again.
func (s *server) admit(c *session) (refusal string) {
	if text := s.unwelcome(c.peer); text != "" {
		return text
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.late.Load() && !c.isOperator {
		return goingDown
	}
	if text := s.full(c.peer, c.localUID, c.isOperator, 0); text != "" {
		return text
	}
	s.quick.busy.Add(1)
	s.nextID++
	c.id = s.nextID
	s.sessions[c.id] = c
	if c.peer.IsValid() {
		s.byAddr[c.peer]++
	} else {
		s.byUID[c.localUID]++
	}
	if c.late.Load() {
		s.late.Add(1)
		return ""
	}
	// Taken before the listeners closed: it has the time that all in the middle of
	// something have.
	c.draining = s.draining
	s.running.Add(1)
	return ""
}

// unwelcome is why nobody from there is let in; "": nothing. The zero Addr is the local
// socket.
func (s *server) unwelcome(peer netip.Addr) string {
	if !peer.IsValid() {
		return ""
	}
	if !filterAllows(s.config().Filter, peer) {
		return "Connections from your address are not accepted."
	}
	if left, banned := s.auth.banned(peer); banned {
		return fmt.Sprintf("Too many failed logins from your address; try again in %s.", left.Round(time.Second))
	}
	return ""
}

// full is which limit of sessions leaves no room for one from there, or of that uid, of
// those that are there but for so many. s.mu is held.
func (s *server) full(peer netip.Addr, uid uint32, operator bool, butFor int) string {
	l := s.config().Limits
	switch {
	case peer.IsValid() && s.byAddr[peer] >= l.SessionsPerAddress:
		return fmt.Sprintf("Too many connections from your address: at most %d.", l.SessionsPerAddress)
	case !peer.IsValid() && !operator && s.byUID[uid] >= l.SessionsPerAddress:
		return fmt.Sprintf("Too many connections of your uid: at most %d.", l.SessionsPerAddress)
	case !operator && len(s.sessions)-butFor >= l.Sessions: // who mends it always has a place
		return fmt.Sprintf("Too many connections: at most %d; try again later.", l.Sessions)
	}
	return ""
}

// filterAllows applies [filter]: denied before allowed, everyone if neither.
func filterAllows(f filterConfig, a netip.Addr) bool {
	allowed, _, _ := filterDecides(f, a)
	return allowed
}

// filterDecides is filterAllows with the list that decides, and the index of the network in
// it; -1 where none of its networks has a.
func filterDecides(f filterConfig, a netip.Addr) (allowed bool, key string, at int) {
	holds := func(n network) bool { return n.contains(a) }
	if i := slices.IndexFunc(f.DenyFrom, holds); i >= 0 {
		return false, "filter.deny_from", i
	}
	i := slices.IndexFunc(f.AllowFrom, holds)
	return i >= 0 || len(f.AllowFrom) == 0, "filter.allow_from", i
}

// ended takes a session off the books.
func (s *server) ended(c *session, result string) {
	s.mu.Lock()
	delete(s.sessions, c.id)
	if c.peer.IsValid() {
		if s.byAddr[c.peer]--; s.byAddr[c.peer] == 0 {
			delete(s.byAddr, c.peer)
		}
	} else if s.byUID[c.localUID]--; s.byUID[c.localUID] == 0 {
		delete(s.byUID, c.localUID)
	}
	s.quietAt = time.Now()
	waited := &s.running
	if c.late.Load() {
		waited = &s.late
	}
	s.mu.Unlock()
	if c.counting {
		s.metrics.sessionEnded(c.proto, result)
	}
	waited.Done()
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
	a.follow(u)
	return a, nil
}

// limits has the account's rates be what the user's file says.
func (s *server) limits(a *account, u *user) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a.follow(u)
}

func (a *account) follow(u *user) {
	a.up = adjust(a.up, int64(u.UploadRate))
	a.down = adjust(a.down, int64(u.DownloadRate))
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

// rule is the entry of For that holds for an address; -1: none.
func (c *passiveConfig) rule(a netip.Addr) int {
	return longestNetwork(len(c.For), func(i int) network { return c.For[i].Network }, a)
}

// tells is the address that PASV tells a client, and the key it is from; "" for the one
// that his control connection reached.
func (c *passiveConfig) tells(peer netip.Addr) (address, key string) {
	if i := c.rule(peer); i >= 0 {
		return c.For[i].Address, fmt.Sprintf("passive.for[%d]", i)
	}
	return c.Address, "passive.address"
}

// passiveAddress is what PASV tells this client: the rule of his network, the
// longest if many fit, the address for all, or the control connection's own.
func (s *server) passiveAddress(peer, local netip.Addr) (netip.Addr, error) {
	tell, _ := s.config().Passive.tells(peer)
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
		return netip.Addr{}, errorf("passive address: %w", err)
	}
	return as[0].Unmap(), nil
}
