// lifecycle.go is the daemon's life between its start and its end, and what it
// tells systemd of it: ready, reloading, its status, that it is well, how much
// longer a drain takes. It is apart from server.go because its question is when,
// and not who: nothing here admits or refuses anybody. The protocol is
// sd_notify(3); without NOTIFY_SOCKET nothing is sent.

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

const (
	// statusEvery is how often systemd is told about sessions, if their number
	// changed: often enough for whoever looks, too rare to cost anything.
	statusEvery = 5 * time.Second

	// While draining, systemd is asked for extendBy more, every extendEvery: it
	// counts from when it was asked, and a busy box may be late once or twice.
	extendEvery = 2 * time.Second
	extendBy    = 10 * time.Second

	// watchdogShare of the unit's WatchdogSec= is how often the accept path is
	// tried; half is what sd_watchdog_enabled(3) advises, and a third leaves room
	// for one try that failed by bad luck.
	watchdogShare = 3

	// notifyTimeout is how long systemd may leave its queue full.
	notifyTimeout = time.Second

	// idleLook is how often an idle daemon looks whether it may go.
	idleLook = 250 * time.Millisecond

	// What SIGUSR1 and a reload put into the log at most.
	dumpSessions = 200
	maxChanges   = 50
)

// live serves until SIGTERM or SIGINT, or until it was idle for long enough,
// drains, and returns the exit code. ready is called when every listener answers.
func (s *server) live(ready func()) int {
	signals := s.signals
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1)
	defer signal.Stop(signals)
	s.serve()
	s.systemd.tell(daemon.SdNotifyReady, "STATUS="+s.status())
	if ready != nil {
		ready()
	}
	ctx, stop := context.WithCancel(s.ctx)
	var watching sync.WaitGroup
	watching.Go(func() { s.watchdog(ctx) })
	s.attend(signals)
	stop()
	watching.Wait()
	s.shutdown(signals)
	return exitOK
}

// A notifier tells systemd (sd_notify(3)). Its socket is opened once and kept, which
// go-systemd's SdNotify does not do: a daemon that has no descriptors left is well,
// and must be able to say so.
type notifier struct {
	mu   mutex
	conn net.Conn
}

// tell sends one message. Who has no systemd is not told, and one that does not
// answer is no reason to do anything else than before.
func (n *notifier) tell(state ...string) {
	to := os.Getenv("NOTIFY_SOCKET")
	if to == "" {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for range 2 { // once more, by a new connection, if who listened there is another now
		if n.conn == nil {
			var err error
			if n.conn, err = net.Dial("unixgram", to); err != nil {
				n.conn = nil
				return
			}
		}
		n.conn.SetWriteDeadline(time.Now().Add(notifyTimeout))
		_, err := io.WriteString(n.conn, strings.Join(state, "\n"))
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) { // its queue is full, and would still be
			return
		}
		n.conn.Close()
		n.conn = nil
	}
}

// attend does what signals ask for until one asks for the end.
func (s *server) attend(signals <-chan os.Signal) {
	status := time.NewTicker(statusEvery)
	defer status.Stop()
	var idle <-chan time.Time
	if s.mayIdleExit() {
		t := time.NewTicker(idleLook)
		defer t.Stop()
		idle = t.C
	}
	last := ""
	for {
		select {
		case sig := <-signals:
			switch sig {
			case syscall.SIGHUP:
				s.reload()
				last = ""
			case syscall.SIGUSR1:
				s.dump()
			default:
				return
			}
		case <-status.C:
			if now := s.status(); now != last {
				s.systemd.tell("STATUS=" + now)
				last = now
			}
		case <-idle:
			if s.idleExit() {
				return
			}
		}
	}
}

// status is what systemctl status shows.
func (s *server) status() string {
	sessions, transfers := s.count()
	text := fmt.Sprintf("%d %s, %d %s", sessions, plural(sessions, "session"), transfers, plural(transfers, "transfer"))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused != "" {
		text += "; reload refused, the old configuration stays: " + s.refused
	}
	return text
}

//go:noinline
func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// count tells how many sessions there are and how many of them move something.
func (s *server) count() (sessions, transfers int) {
	for _, c := range s.everySession() {
		if c.late.Load() {
			continue
		}
		sessions++
		c.mu.Lock()
		if c.xfer != nil {
			transfers++
		}
		c.mu.Unlock()
	}
	return sessions, transfers
}

// --- reload ---

// reload reads configuration, users and certificate again, all or nothing, and
// says in the log what is different.
func (s *server) reload() error {
	s.reloading.Lock() // SIGHUP and the operator's request may come together
	defer s.reloading.Unlock()
	s.systemd.tell(daemon.SdNotifyReloading, daemon.SdNotifyMonotonicUsec())
	old := s.config()
	err := s.load(old)
	s.metrics.configReloaded(err == nil)
	s.tellCommands()
	s.mu.Lock()
	s.refused = ""
	if err == nil {
		s.loaded = time.Now()
	} else {
		s.refused, _, _ = strings.Cut(err.Error(), "\n")
	}
	s.mu.Unlock()
	s.systemd.tell(daemon.SdNotifyReady, "STATUS="+s.status())
	if err != nil {
		s.log.Error("reload refused, the old configuration stays", "error", err)
		return err
	}
	s.reloads.Add(1) // each session looks at its user before its next command
	for _, c := range s.everySession() {
		c.mu.Lock()
		u := c.user
		c.mu.Unlock()
		if u == nil {
			continue
		}
		if is := s.users.get(u.Name); is == nil || is.Disabled {
			s.log.Info("kicked", "session", c.id, "user", u.Name, "addr", c.addrText(), "by", "reload")
			c.kill(errKicked)
		}
	}
	s.house.reloaded()
	s.hooks.retryNow() // what failed may be what was mended
	now := s.users.all()
	changes := append(configChanges(old, s.config()), userChanges(s.told, now)...)
	s.told = now
	for i, c := range changes {
		if i == maxChanges {
			s.log.Info("changed", "more", len(changes)-i)
			break
		}
		s.log.Info("changed", "key", c.key, "old", c.was, "new", c.is)
	}
	s.log.Info("reloaded", "changes", len(changes))
	return nil
}

// load is the part of reload that may fail.
func (s *server) load(old *config) error {
	if s.configPath == "" {
		return s.users.reload(nil)
	}
	cfg, err := loadConfig(s.configPath)
	if err != nil {
		return err
	}
	if cfg.Server.UsersDir != old.Server.UsersDir || cfg.Server.StateDir != old.Server.StateDir {
		return errors.New("server.users_dir and server.state_dir can change only at a restart")
	}
	if t, o := cfg.TLS, old.TLS; t.Certificate != o.Certificate || t.Key != o.Key || t.ClientCA != o.ClientCA || t.SessionReuse != o.SessionReuse {
		return errors.New("tls.certificate, key, client_ca and session_reuse can change only at a restart; new files under the old names need none")
	}
	l := cfg.Listen
	l.ProxyFrom = old.Listen.ProxyFrom // looked at for each connection
	if !reflect.DeepEqual(l, old.Listen) {
		return errors.New("[listen] can change only at a restart, all but proxy_from")
	}
	if cfg.HTTP.TLS != old.HTTP.TLS || cfg.Metrics != old.Metrics || cfg.Log.Transfers != old.Log.Transfers {
		return errors.New("http.tls, metrics.per_user and log.transfers can change only at a restart")
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
	s.logLimit.setRate(cfg.Log.Rate)
	s.current.Store(cfg)
	return nil
}

// A change is one key whose value is another after a reload.
type change struct{ key, was, is string }

// configChanges lists what differs, by the names that the keys have in the file.
func configChanges(old, now *config) []change {
	var all []change
	differences("", reflect.ValueOf(old).Elem(), reflect.ValueOf(now).Elem(), &all)
	return all
}

// differences walks two values of one type as config_toml.go does: structs by
// their toml names, maps by their keys, and everything else as it prints.
func differences(path string, old, now reflect.Value, all *[]change) {
	join := func(name string) string {
		if path == "" {
			return name
		}
		return tomlJoinKey(path, name)
	}
	_, isText := old.Interface().(fmt.Stringer)
	switch {
	case old.Kind() == reflect.Struct && !isText:
		for i := range old.NumField() {
			differences(join(old.Type().Field(i).Tag.Get("toml")), old.Field(i), now.Field(i), all)
		}
	case old.Kind() == reflect.Map:
		names := map[string]bool{}
		for _, m := range []reflect.Value{old, now} {
			for _, k := range m.MapKeys() {
				names[k.String()] = true
			}
		}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			o, n := old.MapIndex(reflect.ValueOf(name)), now.MapIndex(reflect.ValueOf(name))
			switch {
			case !o.IsValid():
				*all = append(*all, change{join(name), "", "added"})
			case !n.IsValid():
				*all = append(*all, change{join(name), "", "removed"})
			default:
				differences(join(name), o, n, all)
			}
		}
	case !reflect.DeepEqual(old.Interface(), now.Interface()):
		*all = append(*all, change{path, fmt.Sprint(old.Interface()), fmt.Sprint(now.Interface())})
	}
}

// userChanges tells whose file is new, gone or another since the last reload: files
// are followed without one, too. What is in it is not told: it has the password's hash.
func userChanges(old, now []*user) []change {
	was := map[string]*user{}
	for _, u := range old {
		was[u.Name] = u
	}
	var all []change
	for _, u := range now {
		switch o := was[u.Name]; {
		case o == nil:
			all = append(all, change{"user " + u.Name, "", "added"})
		case o != u && !sameUser(*o, *u):
			all = append(all, change{"user " + u.Name, "", "changed"})
		}
		delete(was, u.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(was)) {
		all = append(all, change{"user " + name, "", "removed"})
	}
	return all
}

// sameUser compares all but the parsed hash: that has functions, of which reflect says that no two are
// the same, and its text is compared.
func sameUser(a, b user) bool {
	a.hash, b.hash = nil, nil
	return reflect.DeepEqual(a, b)
}

// --- SIGUSR1 ---

// dump puts what the daemon does into the log, at whatever level that has.
func (s *server) dump() {
	level := max(slog.LevelInfo, s.level.Level())
	say := func(msg string, args ...any) { s.log.Log(context.Background(), level, msg, args...) }
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	sessions, transfers := s.count()
	s.mu.Lock()
	commands, draining := s.commands, s.draining
	s.mu.Unlock()
	say("state", "uptime", time.Since(s.started).Round(time.Second), "sessions", sessions, "transfers", transfers, "commands", commands,
		"draining", draining, "on_upload_waiting", s.hooks.len(), "goroutines", runtime.NumGoroutine(), "heap", mem.HeapAlloc, "from_system", mem.Sys, "descriptors", descriptorsOpen())
	if p := s.ports.report(s.config().Passive.Ports); p.Size > 0 {
		say("state of the passive ports", "size", p.Size, "in_use", p.InUse, "fullest", p.Fullest, "waiting", p.Waiting, "refused", p.Refused, "foreign", p.Foreign)
	}
	for _, k := range s.sockets {
		say("state of a listener", "name", k.kind, "addr", k.addr().String(), "from_systemd", k.given)
	}
	for i, e := range s.who() {
		if i == dumpSessions {
			say("state of sessions left out", "count", sessions-i)
			break
		}
		say("state of a session", "session", e.ID, "user", e.User, "proto", e.Protocol, "addr", e.Address, "since", e.Since, "doing", e.Doing)
	}
}

// descriptorsOpen counts /proc/self/fd; -1 where there is none.
func descriptorsOpen() int {
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		return -1
	}
	defer d.Close()
	names, _ := d.Readdirnames(0)
	return len(names) - 1 // d's own
}

// --- idle_exit ---

// mayIdleExit tells whether systemd's sockets would bring the daemon back.
//
//go:noinline
func (s *server) mayIdleExit() bool {
	return slices.ContainsFunc(s.sockets, func(k socket) bool { return k.given && k.kind != "http" })
}

// idleExitNotes says what server.idle_exit cannot do here.
func (s *server) idleExitNotes() (notes []string) {
	if s.config().Server.IdleExit == 0 {
		return nil
	}
	if !s.mayIdleExit() {
		return []string{"server.idle_exit does nothing: no socket came from systemd, so nothing would start the daemon again"}
	}
	for _, k := range s.sockets {
		if !k.given {
			notes = append(notes, fmt.Sprintf("%s %s is the daemon's own: while it is not running nobody answers there", k.kind, k.addr()))
		}
	}
	return notes
}

// idleExit tells whether the daemon may go: nobody has been there for the time of
// server.idle_exit, and nothing is left to do. It goes only if nobody came while
// it made sure; who comes later waits in systemd's queue for the next one.
func (s *server) idleExit() bool {
	after := s.config().Server.IdleExit.std()
	idle := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.sessions) == 0 && s.commands == 0 && time.Since(s.quietAt) >= after
	}
	if after == 0 || !idle() || s.hooks.len() > 0 || s.house.busy.Load() > 0 {
		return false
	}
	s.resting.Store(true)
	s.deadline(time.Unix(1, 0))
	s.accepting.Wait()
	s.asking.Wait()
	s.taking.Wait() // what was accepted in the last moment is a session now, or gone
	if idle() {
		s.log.Info("idle", "for", after)
		return true
	}
	s.resting.Store(false)
	s.deadline(time.Time{})
	for _, k := range s.sockets {
		if k.stream != nil {
			s.serveStream(k)
		}
	}
	return false
}

// deadline is set on every stream socket.
//
//go:noinline
func (s *server) deadline(t time.Time) {
	for _, k := range s.sockets {
		if d, ok := k.stream.(interface{ SetDeadline(time.Time) error }); ok {
			d.SetDeadline(t)
		}
	}
}

// --- the end ---

// courtesy is for how much longer sessions in the middle of something may go on
// with it while the server drains.
func (s *server) courtesy() time.Duration {
	at := s.drainAt.Load()
	if at == 0 {
		return 0
	}
	// Half of the drain is left for their farewell, and for transfers.
	return time.Until(time.Unix(0, at).Add(min(drainCourtesy, s.config().Server.Drain.std()/2)))
}

// courtesy is the server's; who has not logged in gets no more than drainGrace of it
// in all, and who is killed nothing. s.mu is held.
func (s *session) courtesy() time.Duration {
	if s.late.Load() || s.killed != nil {
		return 0
	}
	left := s.srv.courtesy()
	if s.user == nil {
		left -= drainCourtesy - drainGrace
	}
	return left
}

// shutdown drains: no new sessions, idle ones end, transfers may finish for
// the time that server.drain gives. Another signal ends it at once.
func (s *server) shutdown(signals <-chan os.Signal) {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	s.systemd.tell(daemon.SdNotifyStopping)
	// The listeners first: whoever has been taken is served, and who has not waits
	// where systemd keeps the queue.
	s.drainAt.Store(time.Now().UnixNano())
	// The pages stay to the last: /readyz says why nobody is let in, and a drain is
	// watched by what /metrics tells.
	for _, k := range s.sockets {
		if k.kind != "http" {
			k.close()
		}
	}
	s.accepting.Wait()
	left := s.everySession()
	most := s.config().Server.Drain.std()
	s.log.Info("draining", "sessions", len(left), "most", most)
	left = slices.DeleteFunc(left, s.stay)
	var late []socket
	if len(left) > 0 { // before the first has ended: who --watch goes on there
		late = s.openLate()
	}
	for _, c := range left {
		c.drain()
	}
	done := make(chan struct{})
	go func() { s.running.Wait(); close(done) }()
	s.await(done, signals, most)
	for _, k := range late {
		k.close()
	}
	s.endPages()
	s.endLate()
	s.end() // logins that are being checked, and datagram services
	for _, c := range s.everySession() {
		c.kill(errDrain)
	}
	// A command has its own time to end, and none may outlive the daemon.
	wait := 2 * closeTimeout
	s.mu.Lock()
	if s.commands > 0 {
		wait += s.config().Exec.KillAfter.std() + programGone
	}
	s.mu.Unlock()
	s.systemd.tell(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", (wait + extendBy).Microseconds()))
	gone := make(chan struct{})
	go func() { <-done; s.late.Wait(); close(gone) }()
	select {
	case <-gone:
	case <-time.After(wait):
		s.log.Warn("some sessions did not end in time")
	}
	s.mu.Lock()
	quiet := len(s.sessions) == 0
	s.mu.Unlock()
	s.house.end(quiet)
	s.hooking.Wait()
	s.ports.shared.close() // s.end has begun it; here its goroutines are waited for
	s.tidying.Stop()
	s.logLimit.tell()
	s.log.Info("stopped", "uptime", time.Since(s.started).Round(time.Second))
}

// stay has an operator who is not logged in as a user stay to the end of a drain, which
// he watches and which does not wait for him; false for everybody else.
func (s *server) stay(c *session) bool {
	c.mu.Lock()
	watches := c.isOperator && c.user == nil
	c.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if watches && !c.late.Load() && s.sessions[c.id] == c {
		c.late.Store(true)
		s.late.Add(1)
		s.running.Done()
	}
	return watches
}

// endLate ends the sessions of operators. What one is asking just now is answered: it may
// have been the kick that ended the wait.
func (s *server) endLate() {
	for _, c := range s.everySession() {
		if c.late.Load() {
			c.drain()
		}
	}
	over := make(chan struct{})
	go func() { s.late.Wait(); close(over) }()
	select {
	case <-over:
	case <-time.After(closeTimeout):
	}
}

// lateListener is where the operator is heard while the daemon drains: a socket beside
// each local one, by that one's name and lateSuffix. The local one itself cannot stay
// open: systemd keeps it, and users who come there meanwhile wait for the next daemon.
const (
	lateListener = "drain"
	lateSuffix   = ".drain"
)

func (s *server) openLate() (all []socket) {
	for _, k := range s.sockets {
		if k.kind != "local" {
			continue
		}
		late, err := openSocket(s.ctx, socketKind{name: lateListener, network: "unix"}, k.addr().String()+lateSuffix, &s.config().Listen)
		if err != nil {
			s.log.Warn("operators are not heard while draining", "error", err)
			continue
		}
		all = append(all, late)
		s.asking.Add(1)
		s.answering.Go(func() {
			s.accept(late)
			s.asking.Done()
		})
	}
	return all
}

// endPages ends the http listeners. What they are answering may be finished, if it
// takes no longer than a moment.
func (s *server) endPages() {
	for _, k := range s.sockets {
		if k.kind == "http" {
			k.close()
		}
	}
	over := make(chan struct{})
	go func() { s.asking.Wait(); s.answering.Wait(); close(over) }()
	select {
	case <-over:
	case <-time.After(closeTimeout):
	}
}

// await waits until the sessions are done, for as long as the drain may take, or
// for a signal that wants it now. systemd is told what it waits for, and that
// this is no daemon that hangs.
func (s *server) await(done <-chan struct{}, signals <-chan os.Signal, most time.Duration) {
	end := time.Now().Add(most)
	over := time.NewTimer(most)
	defer over.Stop()
	look := time.NewTicker(extendEvery)
	defer look.Stop()
	for {
		sessions, transfers := s.count()
		left := max(0, time.Until(end)).Round(time.Second)
		s.systemd.tell(daemon.SdNotifyWatchdog, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extendBy.Microseconds()),
			fmt.Sprintf("STATUS=draining: %d %s and %d %s left, at most %s more", sessions, plural(sessions, "session"), transfers, plural(transfers, "transfer"), left))
		select {
		case <-done:
			return
		case <-over.C:
			return
		case <-look.C:
		case sig := <-signals:
			switch sig {
			case syscall.SIGHUP: // there is nobody left whom a new configuration would serve
			case syscall.SIGUSR1:
				s.dump()
			default:
				s.log.Warn("ending at once", "signal", fmt.Sprint(sig), "sessions", sessions)
				return
			}
		}
	}
}

// --- the watchdog ---

// watchdog tells systemd that the daemon is well, as often as its unit wants to
// hear it (WatchdogSec=), each time after a connection was made to every listener
// and came out at the other end.
func (s *server) watchdog(ctx context.Context) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval <= 0 {
		return
	}
	every := interval / watchdogShare
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		if err, _ := s.probe(ctx, every); err == nil {
			s.systemd.tell(daemon.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			s.log.Error("not well: the own listener did not take a connection", "error", err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// probes are the connections that the daemon makes to itself, by the address that
// they come from.
type probes struct {
	pending atomic.Int32
	short   atomic.Int64 // when accept(2) last had no descriptor or memory, since the server began; 0: never

	mu      mutex
	waiting map[string]chan struct{}
}

func (p *probes) expect(from string) <-chan struct{} {
	taken := make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting == nil {
		p.waiting = map[string]chan struct{}{}
	}
	p.waiting[from] = taken
	p.pending.Add(1)
	return taken
}

// over forgets a probe and tells whether it was still waited for.
func (p *probes) over(from string) (taken chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if taken = p.waiting[from]; taken != nil {
		delete(p.waiting, from)
		p.pending.Add(-1)
	}
	return taken
}

// probed takes a connection that the daemon made to itself, on the goroutine that
// would have begun its session.
func (s *server) probed(c net.Conn) bool {
	if s.probes.pending.Load() == 0 {
		return false
	}
	taken := s.probes.over(probeKey(c.RemoteAddr()))
	if taken == nil {
		return false
	}
	s.mu.Lock() // a session needs it, so it has to be had
	close(taken)
	s.mu.Unlock()
	c.Close()
	return true
}

func probeKey(a net.Addr) string {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port()).String()
	}
	return a.String()
}

// probe connects to every stream listener and waits until what accepts there has
// passed the connection on. What stands between us and our own listener, as a
// firewall or a lack of descriptors, is no sign that the daemon hangs, and is not
// hung, but blocked: to be killed for it would cost every session and mend nothing.
func (s *server) probe(ctx context.Context, within time.Duration) (hung, blocked error) {
	ctx, stop := context.WithTimeout(ctx, within)
	defer stop()
	short := s.probes.short.Load()
	failed := make(chan error, len(s.sockets))
	var all sync.WaitGroup
	for _, k := range s.sockets {
		if k.stream != nil {
			all.Go(func() {
				if err := s.probeOne(ctx, k); err != nil {
					failed <- errorf("%s %s: %w", k.kind, k.addr(), err)
				}
			})
		}
	}
	all.Wait()
	close(failed)
	for err := range failed {
		if errors.Is(err, errNotTaken) && s.probes.short.Load() == short {
			hung = err
		} else {
			blocked = err
		}
	}
	return hung, blocked
}

var errNotTaken = errors.New("nobody took it")

func (s *server) probeOne(ctx context.Context, k socket) error {
	var d net.Dialer
	var taken <-chan struct{}
	var from string
	address := k.addr().String()
	if t, ok := k.addr().(*net.TCPAddr); ok {
		to := netip.AddrPortFrom(probeAddr(k.stream, t.AddrPort().Addr().Unmap()), uint16(t.Port))
		address = to.String()
		// Bound before it connects: it may come out there before connect(2) returns.
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var err error
			if cerr := c.Control(func(fd uintptr) {
				sa, _ := sockaddr(netip.AddrPortFrom(to.Addr(), 0))
				if err = unix.Bind(int(fd), sa); err != nil {
					return
				}
				var own unix.Sockaddr
				if own, err = unix.Getsockname(int(fd)); err == nil {
					from = probeKey(net.TCPAddrFromAddrPort(addrPortOf(own)))
					taken = s.probes.expect(from)
				}
			}); cerr != nil {
				return cerr
			}
			return err
		}
	} else {
		from = "@berth-probe-" + rand.Text() // a name of our own in the abstract namespace, unix(7)
		d.LocalAddr = &net.UnixAddr{Name: from, Net: "unix"}
		taken = s.probes.expect(from)
	}
	conn, err := d.DialContext(ctx, k.addr().Network(), address)
	defer func() { s.probes.over(from) }()
	if err != nil {
		if stuck(k.stream, os.IsTimeout(err)) {
			return errNotTaken
		}
		s.log.Debug("a listener cannot be tried from here", "listener", k.kind, "error", err)
		return err
	}
	defer conn.Close()
	select {
	case <-taken:
		return nil
	case <-ctx.Done():
		return errNotTaken
	}
}

// stuck tells, of a listener that gave a connection no answer (silent) or refused it,
// whether that is its own doing: its queue is full, or it listens no more. Where it is
// not, the connection was dropped or rejected on its way, as by a firewall.
func stuck(ln net.Listener, silent bool) bool {
	yes := silent // where the kernel cannot tell
	onDescriptor(ln, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			// Of a listener, Unacked is the length of its queue (tcp_get_info).
			yes = info.State != tcpListen || silent && info.Unacked > 0
		}
		return nil
	})
	return yes
}

const tcpListen = 10 // TCP_LISTEN, include/net/tcp_states.h

// probeAddr is an address of this machine at which ln listens.
func probeAddr(ln net.Listener, a netip.Addr) netip.Addr {
	if !a.IsUnspecified() {
		return a
	}
	only6 := false
	if a.Is6() {
		onDescriptor(ln, func(fd int) error {
			n, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
			only6 = err == nil && n == 1
			return nil
		})
	}
	if only6 {
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}
