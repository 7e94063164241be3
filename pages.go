package main

// pages.go says which page is where on the http listener, who may read it, and
// whether the daemon is well and ready. It is apart from http.go, which knows the
// wire and no user, and from status.go, which writes the one page for people. It
// knows nothing of what a scrape holds; metrics.go does.

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// healthWithin is how long the listeners have to take a connection: less than
	// berth health waits (healthTimeout), more than a loaded Raspberry Pi needs.
	healthWithin = 3 * time.Second

	// healthKept is for how long what was found holds. Each try costs a connection
	// to every listener, and whoever reaches the page must not have us connect all
	// the time.
	healthKept = 2 * time.Second

	// shortFor is how long after accept(2) had no descriptor new sessions are taken to
	// have no place. A loop that has none tries again each acceptPauseMax.
	shortFor = 2 * acceptPauseMax

	// stuckAfter is how long a write in the state directory may take. A memory card that
	// is at work takes some seconds now and then.
	stuckAfter = 10 * time.Second

	// statusInFlight bounds the status pages that are made at once, as
	// scrapesInFlight does: one may hang with a disk.
	statusInFlight = 4
)

// pages answers what is asked on all http listeners of a server.
type pages struct {
	srv     *server
	metrics httpHandler
	status  httpHandler
	making  chan struct{} // a place each for status pages under way
	within  time.Duration // healthWithin

	mu           mutex     // guards what follows, and is held while the listeners are tried
	healthAt     time.Time // when they were
	health       string    // what /healthz says
	healthStatus int
}

func newPages(s *server) *pages {
	p := &pages{srv: s, making: make(chan struct{}, statusInFlight), within: healthWithin}
	p.metrics = s.metrics.page()
	p.status = httpWithin(scrapeTimeout, p.answerStatus, fmt.Sprintf("The page took more than %v.", scrapeTimeout))
	return p
}

// answer answers one request. Nothing here changes anything. The words for pages are
// httpPages.
func (p *pages) answer(a *httpAnswer, q *httpRequest) {
	a.set("X-Content-Type-Options", "nosniff")
	a.set("Cache-Control", "no-store")
	switch q.url.Path {
	case "/metrics":
		a.page = "metrics"
		if p.mayRead(a, q) {
			p.metrics(a, q)
		}
	case "/":
		a.page = "status"
		if p.mayRead(a, q) {
			p.status(a, q)
		}
	case "/healthz":
		a.page = "healthz"
		text, status := p.healthz()
		a.line(status, text)
	case "/readyz":
		a.page = "readyz"
		if err := p.srv.notReady(); err != nil {
			a.line(httpUnavailable, "not ready: "+err.Error())
			return
		}
		a.line(httpOK, "ready")
	default:
		a.line(httpNotFound, "There is no such page; there are /, /metrics, /healthz and /readyz.")
	}
}

// healthz tells whether the accept path answers: a connection was made to every
// listener and came out where its session would begin. What only stands in the way,
// as a firewall or a lack of descriptors, is told and is no illness: whoever restarts
// what is ill would end every session for it, and have the same again. A lack of
// descriptors is for /readyz, so that new clients go elsewhere.
func (p *pages) healthz() (text string, status int) {
	// By drainAt, as server.mu may be what hangs.
	if p.srv.drainAt.Load() != 0 {
		return "ok", httpOK // the other listeners are closed; this one has just answered
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.health != "" && time.Since(p.healthAt) < healthKept {
		return p.health, p.healthStatus
	}
	hung, blocked := p.srv.probe(p.srv.ctx, p.within)
	p.health, p.healthStatus = "ok", httpOK
	switch {
	case p.srv.drainAt.Load() != 0: // they closed meanwhile
	case p.srv.short():
		p.health = "ok, but " + errNoDescriptor.Error()
	case hung != nil:
		p.health, p.healthStatus = fmt.Sprintf("not well: %v within %v", hung, p.within), httpUnavailable
	case blocked != nil:
		p.health = fmt.Sprintf("ok, but not every listener could be tried: %v", blocked)
	}
	p.healthAt = time.Now()
	return p.health, p.healthStatus
}

var errNoDescriptor = errors.New("no file descriptor is free for new connections; raise LimitNOFILE= of the unit, or lower limits.sessions")

// short tells that a session would find no descriptor, or that one has not of late.
func (s *server) short() bool {
	at := s.probes.short.Load()
	return at != 0 && time.Since(s.started)-time.Duration(at) < shortFor || crowded(2)
}

// notReady is why no new session should come here now; nil if it may.
func (s *server) notReady() error {
	switch {
	case s.drainAt.Load() != 0:
		return errors.New("draining")
	case s.short():
		return errNoDescriptor
	}
	// A memory card that wears out is remounted read-only.
	switch state, done := s.lookState(); {
	case !done:
		return errors.New("the disk of the state directory stands still")
	case state.readOnly != nil:
		return errorf("the state directory cannot be written: %w", state.readOnly)
	}
	return nil
}

// --- who may read ---

// mayRead tells whether q may have a page that names users; if not, the answer says
// what to do. A password that is remembered costs no hash, so a scrape every 15 s
// costs one in five minutes.
func (p *pages) mayRead(a *httpAnswer, q *httpRequest) bool {
	cfg := p.srv.config()
	if len(cfg.HTTP.Users) == 0 {
		if q.here && strange(cfg.Server.Name, q.host()) {
			a.line(httpForbidden, "This machine is asked by a name that is not its own, as web pages do that want to read what is not theirs. "+
				"Ask by address, as localhost, by its host name or by server.name; a proxy can set the Host field to localhost. "+
				"With http.users any name will do.")
			return false
		}
		return true
	}
	if text := clearPages(cfg, q.secure, q.peer); text != "" { // before a browser asks for the password
		a.line(httpForbidden, text)
		return false
	}
	name, password, ok := q.basicAuth()
	if !ok {
		a.ask("This page is for the users of http.users, with name and password.")
		return false
	}
	var err error
	q.giveWay(func(ctx context.Context) {
		_, err = p.srv.auth.verifyAs(ctx, "http", cfg.HTTP.Users, name, password, q.peer)
	})
	var banned bannedError
	switch {
	case err == nil:
		return true
	case errors.As(err, &banned):
		a.set("Retry-After", strconv.Itoa(int(math.Ceil(banned.left.Seconds()))))
		a.line(httpTooMany, "Too many failed logins from your address; try again later.")
	case errors.Is(err, errLogin):
		a.ask("Login incorrect.")
	default: // errAuthBusy, or the connection had to give way
		a.set("Retry-After", "1")
		a.line(httpUnavailable, "Too many logins at this moment; try again.")
	}
	return false
}

// strange tells that host is a name that somebody on the internet may have made to lead
// here: a web page on it is, to the browser that runs on this machine, of one origin
// with these pages, and could read them (DNS rebinding). Names without a dot are nobody's
// to give out there.
func strange(own, host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if _, err := netip.ParseAddr(host); err == nil || !strings.Contains(host, ".") || strings.HasSuffix(host, ".localhost") || strings.EqualFold(host, own) {
		return false
	}
	name, err := os.Hostname()
	return (err != nil || !strings.EqualFold(strings.TrimSuffix(host, ".local"), name)) && !isOwnName(hostsFile, host, name)
}

const (
	hostsFile    = "/etc/hosts"
	maxHostsFile = 1 << 20 // it may be long where it is a list of what is not to be reached
)

// isOwnName tells whether hosts(5) gives the name to an address of this machine. Who wrote
// that file decided where the name leads, and nobody on the internet. A loopback address
// has to be given to the machine's host name too, as Debian does it ("127.0.1.1
// box.example.net box"): others are how lists of advertisers are kept away.
func isOwnName(file, name, machine string) bool {
	data, _ := readConfigBytes(file, maxHostsFile)
	for _, line := range strings.Split(strings.ToLower(string(data)), "\n") {
		line, _, _ = cutText(line, "#")
		words := strings.Fields(line)
		if len(words) < 2 || !inList(words[1:], name) {
			continue
		}
		at := net.ParseIP(words[0])
		for _, own := range machineAddresses() {
			if own.Equal(at) && !at.IsLoopback() || at.IsLoopback() && inList(words[1:], strings.ToLower(machine)) {
				return true
			}
		}
	}
	return false
}

// ask makes the answer one that asks for a password, RFC 7617.
func (a *httpAnswer) ask(text string) {
	a.set("WWW-Authenticate", `Basic realm="berth", charset="UTF-8"`)
	a.line(httpUnauthorized, text)
}

// clearPages says why a password is not taken on a connection from peer; "" if it is.
// It is the rule of all logins, without the exception for users that cannot do TLS.
func clearPages(cfg *config, secure bool, peer netip.Addr) string {
	switch {
	case secure, cfg.TLS.Require == "none":
		return ""
	case cfg.TLS.Require == "always":
		return `Passwords are not taken in clear text: tls.require is "always". Set http.tls = true in the configuration, and restart.`
	case peer.IsLoopback():
		return ""
	}
	return "Passwords are not taken in clear text from another machine. Set http.tls = true in the configuration, and restart."
}

// httpNotes says what in [http] will not do what it seems to. None of it is a reason
// not to serve files: who is missing cannot read, and nobody else can instead.
func httpNotes(cfg *config, us []*user) (notes []string) {
	if len(cfg.Listen.HTTP) == 0 || len(cfg.HTTP.Users) == 0 {
		return nil
	}
	for _, name := range cfg.HTTP.Users {
		i := slices.IndexFunc(us, func(u *user) bool { return u.Name == name })
		switch {
		case i < 0:
			notes = append(notes, "http.users names "+name+", and there is no such user; add him with: berth user add "+name+" --permissions list")
		case us[i].Disabled:
			notes = append(notes, "http.users names "+name+", who is disabled")
		case us[i].hash == nil:
			notes = append(notes, "http.users names "+name+", who has no password; set one with: berth user passwd "+name)
		}
	}
	elsewhere := slices.ContainsFunc(cfg.Listen.HTTP, func(addr string) bool {
		host, _, _ := net.SplitHostPort(addr)
		at, err := netip.ParseAddr(host)
		return host != "localhost" && (err != nil || !at.IsLoopback())
	})
	switch {
	case cfg.HTTP.TLS || cfg.TLS.Require == "none":
	case cfg.TLS.Require == "always":
		notes = append(notes, `http.users: nobody can read /metrics and the status page, as tls.require is "always"; set http.tls = true`)
	case elsewhere:
		notes = append(notes, "http.users: /metrics and the status page are refused to other machines, as a password is not taken in clear text; set http.tls = true")
	}
	return notes
}
