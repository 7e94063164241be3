package main

// Who may come in: the proof that a client is one of the users of users.go. This file
// owns the failure counts with their delays and bans, the bound on hashes computed at
// once and the memory of verified passwords. It must not know sockets, TLS, reply codes,
// files or what a user does once inside; passwd.go knows what a hash is. Everything that
// comes in here was chosen by strangers, and no password leaves it, in an error or a log.

import (
	"cmp"
	"container/list"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// maxLogName is how much of a name that a client made up goes into a log line: twice
	// the longest real one.
	maxLogName = 64

	// maxHashQueue is how many logins may wait for their turn to be hashed. At 20 ms a
	// hash and two cores the last one waits for some three seconds.
	maxHashQueue = 256

	// A verified password is remembered for rememberTime, at most rememberMax of them:
	// contract section 7, for cameras that log in for every picture. An entry is 200 bytes.
	rememberTime = 5 * time.Minute
	rememberMax  = 4096

	// A failure is answered after firstDelay, doubled with each further one of the
	// same address or user up to maxDelay. All hashes that passwd.go accepts take less
	// than firstDelay on the machines meant, so the time of an answer tells nothing.
	firstDelay = time.Second
	maxDelay   = 8 * time.Second

	// maxFailureRecords bounds each table of failures: some 3 MiB when full. The least
	// recently seen goes first; who commands that many networks is not stopped by bans.
	maxFailureRecords = 10_000

	// maxFailureNames is how many user names are told apart for one address.
	maxFailureNames = 32

	// failureWindow is for how long failures are counted where bans are off.
	failureWindow = 10 * time.Minute

	// freeAnonymous is how many logins as a missing "anonymous" or "ftp" do not count
	// towards a ban: Windows Explorer and web browsers try that first, on each of the
	// connections they open, before they ask their user for a name.
	freeAnonymous = 3
)

var (
	// errLogin is all that a client learns: the name or the password is wrong, or the
	// user is disabled or not allowed from there. The log has the reason.
	errLogin = errors.New("login incorrect")

	// errBanned matches the bannedError of an address with too many failures.
	errBanned = errors.New("too many failed logins from this address")

	// errAuthBusy is temporary: too many logins wait for their hash.
	errAuthBusy = errors.New("too many logins at this moment")
)

// bannedError is errBanned with the time that is left of the ban.
type bannedError struct{ left time.Duration }

func (e bannedError) Error() string {
	return fmt.Sprintf("%v; try again in %v", errBanned, max(e.left.Round(time.Second), time.Second))
}

func (e bannedError) Is(target error) bool { return target == errBanned }

// The reasons in the log line "login failed", for fail2ban and people.
const (
	reasonUnknown    = "unknown_user"
	reasonPassword   = "bad_password"
	reasonDisabled   = "disabled"
	reasonNotAllowed = "not_allowed"
	reasonBanned     = "banned"

	// reasonCertificate is a client certificate that is not the user's. A client shows the
	// one it has, and goes on with a password: no sign of an attack by itself.
	reasonCertificate = "unknown_certificate"
)

// loginReasons are all of them.
var loginReasons = []string{reasonUnknown, reasonPassword, reasonDisabled, reasonNotAllowed, reasonBanned, reasonCertificate}

// authenticator decides on logins. All methods may be called at once from anywhere.
type authenticator struct {
	users   *users
	log     *slog.Logger
	observe func(method, result string) // method: password, certificate, local, http; result: ok, failed, banned, busy
	failed  func(reason string)         // told of each line "login failed"
	now     func() time.Time
	compute func(h *passwordHash, password string) bool // the only caller of matches
	dummy   *passwordHash
	gate    hashGate
	sharing atomic.Int32 // logins that wait for a hash that another one computes

	rememberKey [sha256.Size]byte // of this process

	mu         mutex // guards what follows; never held while hashing, waiting or logging
	limits     limitsConfig
	remembered recentMap[[sha256.Size]byte, time.Time]
	computing  map[[sha256.Size]byte]*hashResult // by name, stored hash and password
	addresses  recentMap[failureKey, addressFailures]
	names      recentMap[string, nameFailures]
}

// A hashResult is a hash that is being computed, for all who ask for the same.
type hashResult struct {
	done  chan struct{} // closed when what follows is set
	known bool          // false: who asked first has gone, or was banned meanwhile
	fits  bool
}

// addressFailures is what one address, or an IPv6 /64, has failed at since a time.
type addressFailures struct {
	since  time.Time
	tries  int                  // all failures: for the delay
	points int                  // those that count towards a ban
	byName map[string]nameTries // so that a success takes back its own
	banned time.Time            // until then
	spared bool                 // a ban was due, but the address is this machine
}

type nameTries struct{ tries, points int }

// nameFailures is what has failed for one name, from anywhere.
type nameFailures struct {
	since time.Time
	tries int
}

// newAuthenticator makes one whose hash computations take at most a core each and as
// many cores as Go may use; observe may be nil.
func newAuthenticator(us *users, limits limitsConfig, log *slog.Logger, observe func(method, result string)) *authenticator {
	if observe == nil {
		observe = func(method, result string) {}
	}
	a := &authenticator{
		users: us, log: log, observe: observe, failed: func(string) {}, now: time.Now,
		compute:    func(h *passwordHash, password string) bool { return h.matches(password) },
		dummy:      dummyHash(),
		gate:       newHashGate(runtime.GOMAXPROCS(0)),
		limits:     limits,
		computing:  map[[sha256.Size]byte]*hashResult{},
		remembered: newRecentMap[[sha256.Size]byte, time.Time](rememberMax),
		addresses:  newRecentMap[failureKey, addressFailures](maxFailureRecords),
		names:      newRecentMap[string, nameFailures](maxFailureRecords),
	}
	rand.Read(a.rememberKey[:])
	return a
}

// waiting is how many logins wait for a hash: for their turn, or for the one that
// another computes for them.
func (a *authenticator) waiting() int { return int(a.gate.waiting.Load() + a.sharing.Load()) }

// setLimits takes login_failures and ban from a reloaded configuration. Bans that run
// keep their end.
func (a *authenticator) setLimits(limits limitsConfig) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.limits = limits
}

// verify finds out whether password is that of the user called name, at an address from
// which he may come. A failure takes its time, seconds, unless ctx ends. Errors:
// errLogin, errBanned (a bannedError), errAuthBusy, ctx.Err().
//
// What can be told from the time of an answer: nothing. Every failure computes one hash,
// a dummy where there is no real one, and is then answered at a time that is counted from
// the start and does not depend on the hash.
func (a *authenticator) verify(ctx context.Context, name, password string, peer netip.Addr) (*user, error) {
	return a.verifyAs(ctx, "password", nil, name, password, peer)
}

// verifyAs is verify for what only some users may do: those whose names are in only,
// or all if that is nil. For others it fails as a wrong password does.
func (a *authenticator) verifyAs(ctx context.Context, method string, only []string, name, password string, peer netip.Addr) (*user, error) {
	start := a.now()
	if err := a.refuseBanned(name, peer, method); err != nil {
		return nil, err
	}
	u := a.users.get(name)
	hash, reason := a.dummy, u.barred(peer)
	switch {
	case reason != "":
	case only != nil && !inList(only, name):
		reason = reasonNotAllowed
	case u.hash != nil && password != "" && len(password) <= maxPassword:
		hash = u.hash
	}
	reason = cmp.Or(reason, reasonPassword)
	if len(password) > maxPassword {
		password = password[:maxPassword] // for the dummy, which fits nothing
	}

	memory := a.rememberedAs(&user{Name: name}, password)
	if hash != a.dummy {
		memory = a.rememberedAs(u, password)
		if a.remembers(memory) {
			a.succeed(name, peer, method)
			return u, nil
		}
	}
	fits, err := a.computeOnce(ctx, memory, hash, password, func() error { return a.refuseBanned(name, peer, method) })
	if err == errAuthBusy {
		a.observe(method, "busy")
	}
	if err != nil {
		return nil, err
	}
	if fits && hash != a.dummy {
		a.succeed(name, peer, method)
		return u, nil
	}

	delay := a.fail(name, peer, method, reason) - a.now().Sub(start)
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil, errLogin
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// computeOnce tells whether password is that of hash. All who ask for the same at one
// time, by key, share one computation and one place in its queue: after a restart a
// hundred cameras with one login come at once, and nothing is remembered. banned is
// asked after each wait: many may have waited while one of them was the last straw.
func (a *authenticator) computeOnce(ctx context.Context, key [sha256.Size]byte, hash *passwordHash, password string, banned func() error) (fits bool, err error) {
	for {
		a.mu.Lock()
		r, others := a.computing[key]
		if !others {
			r = &hashResult{done: make(chan struct{})}
			a.computing[key] = r
		}
		a.mu.Unlock()
		if !others {
			return a.computeFor(ctx, key, r, hash, password, banned)
		}
		a.sharing.Add(1)
		select {
		case <-r.done:
		case <-ctx.Done():
			err = ctx.Err()
		}
		a.sharing.Add(-1)
		if err != nil {
			return false, err
		}
		if err := banned(); err != nil {
			return false, err
		}
		if r.known {
			return r.fits, nil
		}
	}
}

// computeFor computes the hash for all who wait for r.
func (a *authenticator) computeFor(ctx context.Context, key [sha256.Size]byte, r *hashResult, hash *passwordHash, password string, banned func() error) (fits bool, err error) {
	defer func() {
		a.mu.Lock()
		delete(a.computing, key)
		a.mu.Unlock()
		close(r.done)
	}()
	weight := a.gate.weight(hash.memory)
	if err := a.gate.enter(ctx, weight); err != nil {
		return false, err
	}
	defer a.gate.leave(weight)
	if err := banned(); err != nil {
		return false, err
	}
	// One who asked for the same may have had the answer just before this one asked.
	if r.fits = hash != a.dummy && a.remembers(key); !r.fits {
		r.fits = a.compute(hash, password)
		// The hash's memory is garbage now. Collecting it costs little beside the hash;
		// left to itself it piles up, 19 MiB each, for as long as logins keep coming.
		runtime.GC()
	}
	if r.known = true; r.fits && hash != a.dummy {
		a.remember(key) // before the others go on, and before this result is forgotten
	}
	return r.fits, nil
}

// refuseBanned is the bannedError of a banned address, logged and counted; such a try
// does not lengthen the ban.
func (a *authenticator) refuseBanned(name string, peer netip.Addr, method string) error {
	left, yes := a.bannedAs(peer, method)
	if !yes {
		return nil
	}
	a.logFailure(name, peer, method, reasonBanned)
	a.observe(method, "banned")
	return bannedError{left}
}

// allowed tells whether u may log in at all, and from peer.
func (a *authenticator) allowed(u *user, peer netip.Addr) bool { return u.barred(peer) == "" }

// barred is the reason why nobody logs in as u from peer, whatever he knows; "": none.
// There may be no u.
func (u *user) barred(peer netip.Addr) string {
	switch {
	case u == nil:
		return reasonUnknown
	case u.Disabled:
		return reasonDisabled
	case len(u.AllowFrom) > 0 && u.allowRule(peer) < 0:
		return reasonNotAllowed
	}
	return ""
}

// allowRule is the entry of allow_from that has peer, or -1. The zero Addr, the other
// end of a unix socket, is this machine: it passes where loopback does.
//
//go:noinline
func (u *user) allowRule(peer netip.Addr) int {
	return slices.IndexFunc(u.AllowFrom, func(n network) bool {
		if !peer.IsValid() {
			return n.contains(netip.IPv6Loopback()) || n.contains(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		}
		return n.contains(peer)
	})
}

// succeed takes back the failures of this user from this address, and counts a login.
// verify calls it; logins by certificate and local socket call it for themselves.
func (a *authenticator) succeed(name string, peer netip.Addr, method string) {
	a.mu.Lock()
	if rec := a.addresses.get(failuresOf(peer, method)); rec != nil {
		if own, ok := rec.byName[name]; ok {
			rec.tries -= own.tries
			rec.points -= own.points
			delete(rec.byName, name)
			if n := a.names.get(name); n != nil {
				n.tries = max(0, n.tries-own.tries)
			}
		}
	}
	a.mu.Unlock()
	a.observe(method, "ok")
}

// fail records a failed login: one log line of fixed shape, one count, and a ban if it
// is due. It returns for how long the answer must be held back; verify does so, others
// (certificate, local) may.
func (a *authenticator) fail(name string, peer netip.Addr, method, reason string) time.Duration {
	now := a.now()
	points := 1
	a.mu.Lock()
	window := a.window()
	key := failuresOf(peer, method)
	rec := a.addresses.touch(key)
	if rec.since.IsZero() || now.Sub(rec.since) > window && now.After(rec.banned) {
		*rec = addressFailures{since: now, byName: map[string]nameTries{}}
	}
	counted := logName(name)
	if _, ok := rec.byName[counted]; !ok && len(rec.byName) >= maxFailureNames {
		counted = "" // no user has this name, so no success takes these back
	}
	own := rec.byName[counted]
	if reason == reasonUnknown && (name == "anonymous" || name == "ftp") && own.tries < freeAnonymous {
		points = 0
	}
	own.tries++
	own.points += points
	rec.byName[counted] = own
	rec.tries++
	rec.points += points

	n := a.names.touch(logName(name))
	if n.since.IsZero() || now.Sub(n.since) > window {
		*n = nameFailures{since: now}
	}
	n.tries++

	due := a.limits.LoginFailures > 0 && a.limits.Ban > 0 && rec.points >= a.limits.LoginFailures
	ban, spare := false, false
	switch here := key.from == (netip.Prefix{}); {
	case due && here:
		// A ban would shut out everyone behind a proxy or tunnel on this machine.
		spare, rec.spared = !rec.spared, true
	case due && !now.Before(rec.banned):
		ban, rec.banned = true, now.Add(window)
		// What comes after the ban is counted afresh.
		rec.since, rec.points, rec.byName = now, 0, map[string]nameTries{}
	}
	tries := max(rec.tries, n.tries)
	a.mu.Unlock()

	a.logFailure(name, peer, method, reason)
	a.observe(method, "failed")
	if ban {
		a.log.Warn("address banned", "addr", key.from.String(), "dur", window, "method", method)
	}
	if spare {
		a.log.Warn("address not banned", "addr", addrText(peer), "reason", "it is this machine")
	}
	return failureDelay(tries)
}

// window is for how long failures are counted. a.mu is held.
func (a *authenticator) window() time.Duration {
	if ban := a.limits.Ban.std(); ban > 0 {
		return ban
	}
	return failureWindow
}

// failureDelay is when a failure is answered that is the last of so many.
func failureDelay(tries int) time.Duration { return min(maxDelay, firstDelay<<min(tries-1, 8)) }

// unproven logs and counts a client certificate that nobody may log in with. It earns no
// ban and no delay, as certificates cannot be guessed.
func (a *authenticator) unproven(name string, peer netip.Addr, candidates []*user) {
	reason := reasonCertificate
	for _, u := range candidates {
		if name == "" || u.Name == name {
			reason = reasonNotAllowed
			if u.Disabled {
				reason = reasonDisabled
			}
		}
	}
	a.logFailure(name, peer, "certificate", reason)
	a.observe("certificate", "failed")
}

// logFailure writes the line that docs and fail2ban filters know; nothing else has its
// message.
func (a *authenticator) logFailure(name string, peer netip.Addr, method, reason string) {
	a.failed(reason)
	a.log.Warn("login failed", "user", logName(name), "addr", addrText(peer), "method", method, "reason", reason)
}

// logName is a name as a client gave it, cut to a length that logs can bear; slog
// escapes what is in it.
func logName(name string) string { return name[:min(len(name), maxLogName)] }

func addrText(peer netip.Addr) string {
	if !peer.IsValid() {
		return "local"
	}
	return peer.Unmap().String()
}

// A failureKey is what failures are counted by. The pages have a count of their own: a
// scraper with an old password, which tries for ever, is to cost nobody behind the same
// address his files, nor a camera with an old one the operator his metrics.
type failureKey struct {
	from  netip.Prefix // an IPv4 address, the /64 that an IPv6 host can choose its address from, or the zero Prefix for all of this machine
	pages bool
}

func failuresOf(peer netip.Addr, method string) failureKey {
	pages := method == "http"
	peer = peer.Unmap().WithZone("")
	if !peer.IsValid() || peer.IsLoopback() {
		return failureKey{pages: pages}
	}
	const ipv6Subnet = 64 // RFC 4291 section 2.5.4
	p, _ := peer.Prefix(min(peer.BitLen(), ipv6Subnet))
	return failureKey{p, pages}
}

// banned tells whether peer is banned from logins other than those of the pages, and for
// how long still.
func (a *authenticator) banned(peer netip.Addr) (left time.Duration, yes bool) {
	return a.bannedAs(peer, "password")
}

func (a *authenticator) bannedAs(peer netip.Addr, method string) (left time.Duration, yes bool) {
	now := a.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	rec := a.addresses.get(failuresOf(peer, method))
	if rec == nil || !now.Before(rec.banned) {
		return 0, false
	}
	return rec.banned.Sub(now), true
}

// bans is the number of addresses that are banned now; one that is banned from the pages
// and from the rest counts twice.
func (a *authenticator) bans() int {
	now := a.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for rec := range a.addresses.values {
		if now.Before(rec.banned) {
			n++
		}
	}
	return n
}

// --- remembered passwords ---

// rememberedAs is the key under which a verified password is remembered: a keyed hash
// that is worth nothing outside this process. The stored hash is in it, so a changed
// password or user is not remembered any more.
func (a *authenticator) rememberedAs(u *user, password string) (key [sha256.Size]byte) {
	mac := hmac.New(sha256.New, a.rememberKey[:])
	for _, part := range [...]string{u.Name, u.Password, password} {
		mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part)))) // so that no two splits are alike
		io.WriteString(mac, part)
	}
	mac.Sum(key[:0])
	return key
}

func (a *authenticator) remembers(key [sha256.Size]byte) bool {
	now := a.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.remembered.get(key)
	return at != nil && now.Sub(*at) < rememberTime
}

func (a *authenticator) remember(key [sha256.Size]byte) {
	now := a.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	*a.remembered.touch(key) = now
}

// --- the bound on hashes ---

// hashGate bounds the hashes that are computed at once: as many as there are cores, and
// as much memory as that many new hashes take (19 MiB each), or one hash if a single
// stored one wants more. Without it, 32 logins at once starve every transfer.
type hashGate struct {
	slots   chan struct{}
	turn    chan struct{} // held by who collects slots, so that two do not wait for each other
	waiting *atomic.Int32
}

func newHashGate(slots int) hashGate {
	return hashGate{make(chan struct{}, slots), make(chan struct{}, 1), new(atomic.Int32)}
}

// weight is the slots that a hash of so many KiB takes.
func (g hashGate) weight(memory int) int {
	return min(cap(g.slots), (memory+argonMemory-1)/argonMemory)
}

// enter waits for that many slots, in turn. Errors: errAuthBusy if the queue is full,
// ctx.Err().
func (g hashGate) enter(ctx context.Context, weight int) error {
	defer g.waiting.Add(-1)
	if g.waiting.Add(1) > maxHashQueue {
		return errAuthBusy
	}
	select {
	case g.turn <- struct{}{}:
		defer func() { <-g.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for got := range weight {
		select {
		case g.slots <- struct{}{}:
		case <-ctx.Done():
			g.leave(got)
			return ctx.Err()
		}
	}
	return nil
}

func (g hashGate) leave(weight int) {
	for range weight {
		<-g.slots
	}
}

// --- a bounded table ---

// recentMap is a map of at most limit entries that forgets the least recently used.
type recentMap[K comparable, V any] struct {
	limit int
	items map[K]*list.Element
	order *list.List // of *recentItem, the latest in front
}

type recentItem[K comparable, V any] struct {
	key   K
	value V
}

func newRecentMap[K comparable, V any](limit int) recentMap[K, V] {
	return recentMap[K, V]{limit, map[K]*list.Element{}, list.New()}
}

// get is the value of k, nil if there is none.
func (m recentMap[K, V]) get(k K) *V {
	e := m.items[k]
	if e == nil {
		return nil
	}
	m.order.MoveToFront(e)
	return &e.Value.(*recentItem[K, V]).value
}

// touch is get that makes a zero value where there is none.
func (m recentMap[K, V]) touch(k K) *V {
	if v := m.get(k); v != nil {
		return v
	}
	if len(m.items) >= m.limit {
		oldest := m.order.Back()
		m.order.Remove(oldest)
		delete(m.items, oldest.Value.(*recentItem[K, V]).key)
	}
	item := &recentItem[K, V]{key: k}
	m.items[k] = m.order.PushFront(item)
	return &item.value
}

// values yields every value, in no promised order.
func (m recentMap[K, V]) values(yield func(*V) bool) {
	for _, e := range m.items {
		if !yield(&e.Value.(*recentItem[K, V]).value) {
			return
		}
	}
}
