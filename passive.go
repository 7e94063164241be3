// passive.go shares passive ports. Where a range is wide, each PASV listens on a
// port of its own for as long as it takes one client to connect, and data.go is
// all there is to it. Behind a container's few mapped ports that would be a limit
// to how many clients can be between their PASV and their connection; so there a
// port has one listener for all sessions, and what comes in is given to the session
// that awaits it from that address. It is apart from data.go because it alone has
// to tell clients from each other: what goes wrong here hands a file to a stranger.
//
// The rules:
//
//   - A reservation is a port and the address its client connects from. There is at
//     most one for each such pair, so an address has as many at once as there are
//     ports. It ends when the connection is accepted, which is at once, whether or
//     not its transfer has begun. Behind a proxy, whose clients only their headers
//     tell apart, it ends when its transfer has found its connection.
//   - A PASV that finds all ports reserved for its address waits in a queue, for at
//     most portWait, for one of them.
//   - A reservation is its session's for portHold; after that who waits may
//     have it, unless a transfer waits for its connection, which has a timeout of its
//     own. Else four idle clients could keep four ports from everyone at their address.
//   - A connection that nobody awaits is ended when it is accepted, and before each
//     new reservation all that wait at the port are. So what a client opens late, or
//     twice, is not there any more when the next session has the port.
//   - A port whose client never came rests for portRest before another session has it
//     for the same address, as that client may be on its way.
//
// What is left: behind one address (NAT, the gateway of a container network) a client
// that connects later than that, or again, can come in as another one of the same
// address. It could by guessing ports as well; with private ports it has to be quicker.
// A TLS session that data connections must resume (tls.session_reuse = "on") refuses
// it; choosing the session by that is possible, and not done.

package main

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// sharedRange is up to how many ports a range is shared as a whole. People map
	// four to twenty into a container; whoever opens hundreds has one for each client.
	sharedRange = 64
	// sharedSpare is how many ports at the end of a wider range are kept for sharing,
	// for the time when none of the others is free.
	sharedSpare = 16
	// portWait is how long a PASV waits for a port. An address with four ports and a
	// round trip of 100 ms begins 40 transfers a second; clients wait 15 s and more
	// for a reply.
	portWait = 5 * time.Second
	// portHold is for how long a port is kept for a client that does not connect, when
	// others wait for one: clients connect as soon as they have read the reply, and
	// with portRest it is less than portWait, so that who waits is served.
	portHold = 2 * time.Second
	// portRest is for the connection that is under way when its reservation ends: one
	// repetition of its first packet (RFC 6298 section 2: after a second) and its way.
	portRest = 2 * time.Second
	// sharedLinger is how long a shared port stays open after its last reservation. A
	// port that is in use needs no new listener each time, and one that is not is
	// closed, so that a scan of an idle box finds nothing.
	sharedLinger = time.Second
	// sharedBacklog is how many may wait at a shared port: the clients of many
	// addresses in the moment before they are accepted.
	sharedBacklog = 128
	// acceptRetry is the wait after accept(2) failed for want of descriptors or memory.
	acceptRetry = 50 * time.Millisecond
	// sharedKept is how many connections may wait where only what they send tells whose
	// they are, as behind a proxy: the client's own, and a few of its neighbours.
	sharedKept = 8
)

// errPortsHeld: all ports are reserved for this address, or rest; one will be free.
var errPortsHeld = errors.New("all passive ports are reserved for this address")

// --- who may bring a data connection ---

// dataFrom is the address that the session's data connections come from: the
// client's own or, if its control connection came through a proxy, the proxy's.
func (s *session) dataFrom() netip.Addr {
	if s.via.IsValid() {
		return s.via
	}
	return s.peer
}

// mayBringData tells whether c, which came in on a passive port of the session, can be
// from its client (no PASV theft, RFC 2577 section 3). Every passive connection, of
// private and of shared ports, passes here before it is used.
func (s *session) mayBringData(c net.Conn) bool {
	a := addrOf(c.RemoteAddr())
	return !a.IsValid() || a == s.dataFrom() || a == s.peer // not valid: a test's pipe
}

// bringsData is mayBringData for who can wait: from a proxy it reads the header that
// tells whose connection it is, as that address is the same for all behind it.
func (s *session) bringsData(c net.Conn) bool {
	if !s.mayBringData(c) {
		return false
	}
	if !s.via.IsValid() || addrOf(c.RemoteAddr()) != s.via {
		return true
	}
	p, err := readProxyHeader(c)
	if err != nil || p.from.Addr() != s.peer {
		s.srv.log.Warn("foreign data connection", "session", s.id, "addr", s.addrText(), "via", s.via.String(), "from", p.from.String(), "error", err)
		return false
	}
	return true
}

// A portRequest is a PASV: where to listen, and for whom.
type portRequest struct {
	ctx    context.Context // the server's, with which shared ports end
	local  netip.Addr
	from   netip.Addr          // dataFrom of the session
	owner  uint64              // its id
	accept func(net.Conn) bool // mayBringData of the session; it must not wait
	keep   bool                // accept cannot tell them apart: whose is a connection is found out later
	hold   time.Duration       // how long a reservation is its own, though nobody connects
	ports  portRange
}

// count is how many ports a range has; 0: any port will do.
//
//go:noinline
func (r portRange) count() int {
	if r == (portRange{}) {
		return 0
	}
	return int(r.High) - int(r.Low) + 1
}

// split tells which ports of a range are private and which are shared. Both are
// zero where there are none, and private is where any port will do.
func (r portRange) split() (private, shared portRange) {
	switch n := r.count(); {
	case n == 0:
		return r, r
	case n <= sharedRange:
		return portRange{}, r
	}
	return portRange{r.Low, r.High - sharedSpare}, portRange{r.High - sharedSpare + 1, r.High}
}

// arm opens a passive port for a session, or reserves one. It does not wait:
// errPortsHeld says that await may be worth it.
func (p *dataPorts) arm(q portRequest) (dataArm, uint16, error) {
	private, shared := q.ports.split()
	if private.count() > 0 || shared.count() == 0 {
		ln, port, err := p.passive(q.local, private)
		if err == nil {
			p.shared.count(func(u *portUse) { u.private[q.local]++ })
			return dataArm{ln: ln, counts: p.shared, private: q.local}, port, nil
		}
		if err != errNoPort || shared.count() == 0 {
			return dataArm{}, 0, p.shared.refused(err)
		}
	}
	q.ports = shared
	r, err := p.shared.reserve(q, p.listen)
	if err != nil {
		return dataArm{}, 0, p.shared.refused(err)
	}
	return dataArm{ln: r, counts: p.shared}, r.addr.Port(), nil
}

// await waits for a port after arm said errPortsHeld, until stop is closed.
func (p *dataPorts) await(q portRequest, stop <-chan struct{}) (dataArm, uint16, error) {
	_, q.ports = q.ports.split()
	r, err := p.shared.await(q, p.listen, stop)
	if err != nil {
		return dataArm{}, 0, p.shared.refused(err)
	}
	return dataArm{ln: r, counts: p.shared}, r.addr.Port(), nil
}

// --- shared ports ---

// A sharedListener is what shared ports need of a listener.
type sharedListener interface {
	net.Listener
	SetDeadline(time.Time) error
	// share prepares it for the other two, which any goroutine may then call.
	share() error
	// poll calls ready at once, and then whenever connections may have come, until
	// the deadline or Close. It returns why it ended.
	poll(ready func()) error
	// next is a connection that waits already; nil without an error: none does.
	next() (net.Conn, error)
}

// sharedPorts is all the ports that are shared, and who waits for what.
type sharedPorts struct {
	running sync.WaitGroup // a goroutine for each open port

	mu     mutex // guards what follows, and all ports and reservations; held for moments
	closed bool
	tied   bool // close is called when the server ends
	open   map[netip.AddrPort]*sharedPort
	rests  map[portClaim]portRested
	queues map[portLane][]*portWaiter // first come, first served
	used   portUse
}

// A portClaim is a port and who connects to it: what a reservation has to itself.
type portClaim struct {
	at   netip.AddrPort
	from netip.Addr
}

// A portLane is who competes for ports: clients of one address, at one of ours.
type portLane struct{ local, from netip.Addr }

type portRested struct {
	until time.Time
	owner uint64 // the session whose client may be on its way; it does no harm to itself
}

type portWaiter struct{ wake chan struct{} }

// portUse counts how passive ports are used.
type portUse struct {
	private map[netip.Addr]int // ports open for one session each, at each of our addresses
	waiting int                // PASVs that wait for a port
	refused uint64             // and those answered that there is none
	foreign uint64             // connections to passive ports that nobody awaited
}

func newSharedPorts() *sharedPorts {
	return &sharedPorts{open: map[netip.AddrPort]*sharedPort{}, rests: map[portClaim]portRested{}, queues: map[portLane][]*portWaiter{},
		used: portUse{private: map[netip.Addr]int{}}}
}

func (p *sharedPorts) count(change func(*portUse)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.used)
}

// refused counts a PASV that there was no port for, and returns err.
func (p *sharedPorts) refused(err error) error {
	if errors.Is(err, errNoPort) {
		p.count(func(u *portUse) { u.refused++ })
	}
	return err
}

// A portReport is what metrics and the operator are told of passive ports. Where
// clients reach the box at several of its addresses, each has all the ports of the
// range, and it is the one with the most in use that is told of.
type portReport struct {
	Size    int    // ports of the range; 0: any port
	InUse   int    // that wait for a client's connection; a shared one counts once
	Fullest int    // that one client's address cannot have now, of all addresses the most. At Size, its next PASV waits
	Waiting int    // PASVs that wait for a port
	Refused uint64 // PASVs so far that there was no port for
	Foreign uint64 // connections so far that nobody awaited, or from somebody else
}

// report counts the use of passive ports, which are those of the range.
func (p *dataPorts) report(ports portRange) portReport {
	s := p.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	r := portReport{Size: ports.count(), Waiting: s.used.waiting, Refused: s.used.refused, Foreign: s.used.foreign}
	inUse, lanes := maps.Clone(s.used.private), map[portLane]int{}
	for local := range s.used.private {
		lanes[portLane{local: local}] = 0 // private ports are out of everybody's reach
	}
	for _, port := range s.open {
		if len(port.awaited) > 0 {
			inUse[port.at.Addr()]++
		}
		for from := range port.awaited {
			lanes[portLane{port.at.Addr(), from}]++
		}
	}
	for _, n := range inUse {
		r.InUse = max(r.InUse, n)
	}
	for lane, shared := range lanes {
		r.Fullest = max(r.Fullest, s.used.private[lane.local]+shared)
	}
	return r
}

// A sharedPort is one port that is open, and who is awaited there.
type sharedPort struct {
	pool    *sharedPorts
	at      netip.AddrPort
	ln      sharedListener
	awaited map[netip.Addr]*reservation
}

// reserve gives the request a port that is free for its address. Whoever waits
// for one already comes first.
func (p *sharedPorts) reserve(q portRequest, listen func(netip.AddrPort) (net.Listener, error)) (*reservation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queues[portLane{q.local, q.from}]) > 0 {
		return nil, errPortsHeld
	}
	r, _, err := p.take(q, listen)
	return r, err
}

// take looks for a port from a random one on, as passive does. With errPortsHeld it
// tells when to look again, if nobody says so before; zero: no use.
func (p *sharedPorts) take(q portRequest, listen func(netip.AddrPort) (net.Listener, error)) (_ *reservation, again time.Time, _ error) {
	if p.closed {
		return nil, again, net.ErrClosed
	}
	now := time.Now()
	n := q.ports.count()
	start := rand.IntN(n)
	held := false
	for try := range min(n, passiveTries) {
		at := netip.AddrPortFrom(q.local, q.ports.Low+uint16((start+try)%n))
		claim := portClaim{at, q.from}
		if rest, ok := p.rests[claim]; ok && rest.owner != q.owner && now.Before(rest.until) {
			if held = true; again.IsZero() || rest.until.Before(again) {
				again = rest.until
			}
			continue
		}
		port := p.open[at]
		if port == nil {
			var err error
			if port, err = p.listen(q.ctx, at, listen); err != nil {
				if errors.Is(err, syscall.EADDRINUSE) {
					continue // another program has it, or a session alone since before a reload
				}
				return nil, again, err
			}
		} else {
			// What waits here is either awaited, and then the port may become free by
			// it, or too late: it must not meet the reservation to be made.
			port.acceptSome()
			if r := port.awaited[q.from]; r != nil {
				held = true
				free := r.until
				switch {
				case !r.deadline.IsZero():
					continue // a transfer waits for it, and its end will be told
				case !now.Before(r.until):
					r.end()
					free = now.Add(portRest)
				}
				if again.IsZero() || free.Before(again) {
					again = free
				}
				continue
			}
		}
		r := &reservation{pool: p, port: port, addr: at, from: q.from, owner: q.owner, accept: q.accept, keep: q.keep, until: now.Add(q.hold), wake: make(chan struct{}, 1)}
		port.awaited[q.from] = r
		delete(p.rests, claim)
		port.ln.SetDeadline(time.Time{})
		return r, again, nil
	}
	if held {
		return nil, again, errPortsHeld
	}
	return nil, again, errNoPort
}

// listen opens a port, and has it served.
func (p *sharedPorts) listen(ctx context.Context, at netip.AddrPort, listen func(netip.AddrPort) (net.Listener, error)) (*sharedPort, error) {
	ln, err := listen(at)
	if err != nil {
		return nil, err
	}
	shared, ok := ln.(sharedListener)
	if !ok {
		ln.Close()
		return nil, errNoPort
	}
	if err := shared.share(); err != nil {
		ln.Close()
		return nil, err
	}
	port := &sharedPort{pool: p, at: at, ln: shared, awaited: map[netip.Addr]*reservation{}}
	p.open[at] = port
	p.running.Go(port.serve)
	if !p.tied {
		p.tied = true
		context.AfterFunc(ctx, p.close)
	}
	return port, nil
}

// await is reserve for who has time: it waits until a port is free, for at most
// portWait, or until stop is closed (errAborted).
func (p *sharedPorts) await(q portRequest, listen func(netip.AddrPort) (net.Listener, error), stop <-chan struct{}) (*reservation, error) {
	lane := portLane{q.local, q.from}
	w := &portWaiter{wake: make(chan struct{}, 1)}
	late := time.NewTimer(portWait)
	defer late.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queues[lane] = append(p.queues[lane], w)
	p.used.waiting++
	defer func() {
		p.used.waiting--
		p.leave(lane, w)
	}()
	look := time.NewTimer(portWait)
	defer look.Stop()
	for {
		if p.queues[lane][0] == w {
			r, again, err := p.take(q, listen)
			if err != errPortsHeld {
				return r, err
			}
			if !again.IsZero() {
				look.Reset(time.Until(again))
			}
		}
		p.mu.Unlock()
		var over error
		select {
		case <-w.wake:
		case <-look.C:
		case <-late.C:
			over = errNoPort
		case <-stop:
			over = errAborted
		}
		p.mu.Lock()
		if over != nil {
			return nil, over
		}
	}
}

// leave takes w out of the queue. The next one may find what w did not take.
func (p *sharedPorts) leave(lane portLane, w *portWaiter) {
	queue := p.queues[lane]
	for i := range queue {
		if queue[i] == w {
			queue = append(queue[:i], queue[i+1:]...)
			break
		}
	}
	if len(queue) == 0 {
		delete(p.queues, lane)
		return
	}
	p.queues[lane] = queue
	p.next(lane)
}

// next has the first of the queue look again.
func (p *sharedPorts) next(lane portLane) {
	if queue := p.queues[lane]; len(queue) > 0 {
		select {
		case queue[0].wake <- struct{}{}:
		default:
		}
	}
}

// close closes all ports, and returns when their goroutines have ended. No port is
// opened after it.
func (p *sharedPorts) close() {
	p.mu.Lock()
	p.closed = true
	for _, port := range p.open {
		port.ln.Close()
	}
	for lane := range p.queues {
		p.next(lane)
	}
	p.mu.Unlock()
	p.running.Wait()
}

// serve accepts for the port until nobody has been awaited there for sharedLinger.
func (port *sharedPort) serve() {
	p := port.pool
	for {
		err := port.ln.poll(func() {
			for {
				p.mu.Lock()
				more, err := port.acceptSome()
				over := p.closed || len(port.awaited) == 0
				p.mu.Unlock()
				switch {
				case err != nil && over:
					return
				case err != nil:
					time.Sleep(acceptRetry) // it waits in the backlog, and nothing tells of it again
				case !more:
					return
				}
			}
		})
		p.mu.Lock()
		if errors.Is(err, os.ErrDeadlineExceeded) && len(port.awaited) > 0 {
			p.mu.Unlock() // it was reserved in that very moment
			continue
		}
		port.acceptSome() // who is late gets an end and no reset
		delete(p.open, port.at)
		port.ln.Close()
		for from, r := range port.awaited {
			r.port, r.closed = nil, true
			delete(port.awaited, from)
			r.poke()
		}
		p.mu.Unlock()
		return
	}
}

// acceptSome gives what waits at the port to those who await it, and ends the
// rest. It tells whether there may be more, of those who came meanwhile: strangers who
// are quicker than it must not keep the lock.
func (port *sharedPort) acceptSome() (more bool, err error) {
	p := port.pool
	for range 2 * sharedBacklog { // more than can have waited when it was called
		c, err := port.ln.next()
		if c == nil || err != nil {
			return false, err
		}
		from := addrOf(c.RemoteAddr())
		r := port.awaited[from]
		if r == nil || !r.accept(c) || len(r.conns) == sharedKept {
			p.used.foreign++
			hangUp(c)
			continue
		}
		r.conns = append(r.conns, c)
		r.poke()
		if !r.keep {
			delete(port.awaited, from)
			port.freed(from)
			r.port = nil
		}
	}
	return true, nil
}

// freed tells of a reservation that has ended: the first who waits for one may have it.
func (port *sharedPort) freed(from netip.Addr) {
	if len(port.awaited) == 0 {
		port.ln.SetDeadline(time.Now().Add(sharedLinger))
	}
	port.pool.next(portLane{port.at.Addr(), from})
}

// hangUp ends a connection in good order: what its client has sent already (under TLS
// that is a ClientHello) would make a reset of it.
func hangUp(c net.Conn) {
	if q, ok := c.(interface{ hangUp() }); ok {
		q.hangUp()
		return
	}
	c.Close()
}

// --- reservations ---

// A reservation is a session's part of a shared port: a listener that gets one
// connection.
type reservation struct {
	pool   *sharedPorts
	addr   netip.AddrPort
	from   netip.Addr
	owner  uint64
	accept func(net.Conn) bool
	keep   bool
	until  time.Time     // then others may have it
	wake   chan struct{} // something of what follows has changed

	// guarded by pool.mu
	port     *sharedPort // nil: nobody is awaited any more
	conns    []net.Conn  // came, and are not taken yet; one, without keep
	taken    bool        // one was
	closed   bool
	deadline time.Time
}

func (r *reservation) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Accept takes the connection.
func (r *reservation) Accept() (net.Conn, error) {
	for {
		r.pool.mu.Lock()
		var c net.Conn
		closed, deadline := r.closed, r.deadline
		if len(r.conns) > 0 {
			c, r.conns, r.taken = r.conns[0], r.conns[1:], true
		}
		r.pool.mu.Unlock()
		var late <-chan time.Time
		switch {
		case c != nil:
			return c, nil
		case closed:
			return nil, net.ErrClosed
		case !deadline.IsZero():
			left := time.Until(deadline)
			if left <= 0 {
				return nil, os.ErrDeadlineExceeded
			}
			t := time.NewTimer(left)
			defer t.Stop() // a second one only where a transfer is cancelled
			late = t.C
		}
		select {
		case <-r.wake:
		case <-late:
		}
	}
}

// SetDeadline is for any goroutine.
func (r *reservation) SetDeadline(t time.Time) error {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	r.deadline = t
	r.poke()
	return nil
}

// Close gives the port back. Who came and was not taken is reset, as by the close of
// a private port.
func (r *reservation) Close() error {
	r.pool.mu.Lock()
	conns := r.conns
	r.conns = nil
	r.end()
	r.pool.mu.Unlock()
	for _, c := range conns {
		if t, ok := c.(interface{ SetLinger(int) error }); ok {
			t.SetLinger(0)
		}
		c.Close()
	}
	return nil
}

// end ends the wait. The port rests if nobody came.
func (r *reservation) end() {
	r.closed = true
	if r.port != nil {
		if !r.taken {
			r.pool.rest(portClaim{r.addr, r.from}, r.owner)
		}
		delete(r.port.awaited, r.from)
		r.port.freed(r.from)
		r.port = nil
	}
	r.poke()
}

// hangUp ends a connection that came and was not taken.
func (r *reservation) hangUp() {
	r.pool.mu.Lock()
	if r.port != nil {
		r.port.acceptSome() // it may wait there still
	}
	conns := r.conns
	r.conns = nil
	r.pool.mu.Unlock()
	for _, c := range conns {
		hangUp(c)
	}
}

func (r *reservation) Addr() net.Addr { return net.TCPAddrFromAddrPort(r.addr) }

// rest keeps a port from other sessions of the same address for portRest.
func (p *sharedPorts) rest(claim portClaim, owner uint64) {
	now := time.Now()
	for other, rested := range p.rests {
		if !now.Before(rested.until) {
			delete(p.rests, other)
		}
	}
	p.rests[claim] = portRested{now.Add(portRest), owner}
}

// --- the listener of data.go as a shared one ---

// share hands the socket to the poller: a shared port may be quiet for long.
func (l *quickListener) share() error {
	if err := unix.Listen(l.fd, sharedBacklog); err != nil {
		return os.NewSyscallError("listen", err)
	}
	l.join()
	return nil
}

func (l *quickListener) poll(ready func()) error {
	rc, err := l.file.SyscallConn()
	if err != nil {
		return err
	}
	return rc.Read(func(uintptr) bool { ready(); return false })
}

func (l *quickListener) next() (net.Conn, error) {
	rc, err := l.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var c net.Conn
	var failed error
	err = rc.Control(func(listener uintptr) {
		for {
			fd, sa, err := unix.Accept4(int(listener), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			switch err {
			case nil:
				c = &quickConn{quickSocket: quickSocket{fd: fd, quick: l.quick}, local: l.addr, remote: addrPortOf(sa)}
			case unix.EINTR, unix.ECONNABORTED:
				continue
			case unix.EAGAIN:
			default:
				failed = os.NewSyscallError("accept4", err)
			}
			return
		}
	})
	if err != nil {
		return nil, err
	}
	return c, failed
}
