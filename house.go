// house.go keeps house: one loop that counts homes, makes partials of what a
// crash has left, removes partials and files whose time is over, and makes room
// where a full home is to lose its oldest files. It is apart from fs.go and
// ledger.go, which do each of these things to one name, because it decides when
// and to which, and bounds the work of a turn.
//
// Everything is done by the one goroutine that start begins. It never holds a
// name's lock but inside the calls to fs.go.

package main

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"hash/fnv"
	"log/slog"
	"os"
	"path"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	houseTick   = time.Second      // how late housekeeping can be
	ledgerEvery = time.Minute      // how old the ledger on disk gets while things change
	countEvery  = 24 * time.Hour   // each home is counted anew, for what changed behind berth's back
	recountMin  = time.Minute      // after a count that was disturbed
	sweepMin    = time.Second      // between two sweeps for files and partials whose time is over
	sweepMax    = time.Hour        // the same
	clockSlack  = 10 * time.Minute // a clock that moves by more than it ran was set
	clockPause  = time.Hour        // nothing is removed for its age so long after that

	// A sweep that nobody waits for pauses after so many names: a home of a
	// million files takes a minute, and an idle core hardly notices.
	sweepBatch = 1000
	sweepPause = 50 * time.Millisecond
	sweepList  = 1000 // names one sweep acts on; more are left for the next one
	keptOldest = 512  // names that one sweep finds for rotation
)

// clockUnset is before any time that a machine with its clock set would give a
// file: a Raspberry Pi without network begins in 1970.
var clockUnset = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Unix()

// --- one walk ---

// found is a name that a sweep has seen, as it was then.
type found struct {
	t    *tree
	rel  string
	id   fileID
	size int64
	sec  int64
	nsec int64
}

func (f *found) before(t time.Time) bool {
	return f.sec < t.Unix() || f.sec == t.Unix() && f.nsec < int64(t.Nanosecond())
}

// same tells whether e is still what was found.
func (f *found) same(e *entry) bool {
	return e.id() == f.id && e.size == f.size && e.sec == f.sec && e.nsec == f.nsec
}

// A sweep walks what one user stores: it counts, and notes what there is to do.
type sweep struct {
	j             *jail
	others        []*jail   // of users with the same home
	partialBefore time.Time // partials older than this are over; zero: none
	expireBefore  time.Time // so are files; zero: none
	oldest        int       // how many of the oldest files to keep in old
	pace          func() error

	bytes, files int64
	orphans      []found
	partials     []found
	expired      []found
	undated      []found // files of a time when the clock was not set
	old          oldest  // a heap, the youngest first
	asides       int     // partials kept aside, over or not
	firstFile    int64   // mtime of the oldest file whose time is not over, in Unix seconds; 0: none
	spare        quota   // what the files take that rotation may remove
	unseen       bool    // something could not be looked at
	truncated    bool    // there was more to do than the lists hold
	seen         int
}

// oldest is a heap of names with the youngest on top, where it is dropped.
type oldest []found

func (o oldest) Len() int { return len(o) }
func (o oldest) Less(a, b int) bool {
	return o[a].sec > o[b].sec || o[a].sec == o[b].sec && o[a].nsec > o[b].nsec
}
func (o oldest) Swap(a, b int) { o[a], o[b] = o[b], o[a] }
func (o *oldest) Push(x any)   { *o = append(*o, x.(found)) }
func (o *oldest) Pop() any {
	last := len(*o) - 1
	x := (*o)[last]
	*o = (*o)[:last]
	return x
}

// run walks the home, and the shares that its users may write to for what is
// theirs there.
func (s *sweep) run() error {
	if err := s.walk(s.j.home); err != nil {
		return err
	}
	been := map[fileID]bool{s.j.home.id: true}
	for _, j := range append([]*jail{s.j}, s.others...) {
		s.unseen = s.unseen || len(j.missing) > 0
		for _, t := range j.shares {
			if t.write && !been[t.id] {
				been[t.id] = true
				if err := s.walk(t); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// walk visits every directory of a tree, each opened by its path below the
// tree and closed before the next: what is held is the names of directories
// still to be visited.
func (s *sweep) walk(t *tree) error {
	bp := direntBuffers.Get().(*[]byte)
	defer direntBuffers.Put(bp)
	pending := []string{"."}
	for len(pending) > 0 {
		rel := pending[len(pending)-1]
		pending = pending[:len(pending)-1]
		dir, err := t.openDeep(rel)
		if err != nil {
			if rel == "." {
				return err
			}
			if !errors.Is(err, unix.ENOENT) { // else it went meanwhile
				s.uncounted(rel, err)
			}
			continue
		}
		err = s.visit(t, rel, dir, *bp, &pending)
		dir.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *sweep) uncounted(rel string, err error) {
	s.unseen = true
	s.j.set.log().Warn("directory not counted", "user", s.j.key.user, "path", rel, "error", err)
}

// visit looks at each name of one directory.
func (s *sweep) visit(t *tree, rel string, dir *os.File, buf []byte, pending *[]string) error {
	d := int(dir.Fd())
	mine := t == s.j.home
	var st unix.Stat_t
	for {
		n, err := unix.Getdents(d, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil && err != unix.ENOENT { // else it was removed meanwhile
			s.uncounted(rel, err)
		}
		if err != nil || n == 0 {
			return nil
		}
		for rest := buf[:n]; len(rest) > 0; {
			var raw []byte
			raw, rest = nextDirent(rest)
			if len(raw) == 0 || raw[0] == '.' && (len(raw) == 1 || len(raw) == 2 && raw[1] == '.') {
				continue
			}
			name := unsafe.String(&raw[0], len(raw))
			reserved := raw[0] == '.' && isReserved(name)
			stage, aside := reserved && strings.HasPrefix(name, stagePrefix), reserved && strings.HasPrefix(name, partialPrefix)
			if reserved && !stage && !aside {
				continue // a demo's own state
			}
			if unix.Fstatat(d, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT) != nil {
				continue // it went meanwhile
			}
			if s.seen++; s.seen%sweepBatch == 0 {
				if err := s.pace(); err != nil {
					return err
				}
			}
			isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
			isFile := st.Mode&unix.S_IFMT == unix.S_IFREG
			if isDir {
				*pending = append(*pending, path.Join(rel, name))
			}
			// A staging file is in the ledger by what is reserved for it.
			if !stage && (mine || s.j.balance != nil && s.j.balanceOf(t, d, name) == s.j.balance) {
				s.files++
				if isFile {
					s.bytes = addSat(s.bytes, st.Size)
				}
			}
			if isFile {
				s.note(t, d, rel, name, &st, stage, aside)
			}
		}
	}
}

// note puts a file on the list of what is to be done about it, if anything is.
func (s *sweep) note(t *tree, dir int, rel, name string, st *unix.Stat_t, stage, aside bool) {
	f := found{t: t, id: fileID{uint64(st.Dev), st.Ino}, size: st.Size, sec: int64(st.Mtim.Sec), nsec: int64(st.Mtim.Nsec)}
	list := func(to *[]found) {
		if len(*to) >= sweepList {
			s.truncated = true
			return
		}
		f.rel = path.Join(rel, name)
		*to = append(*to, f)
	}
	switch {
	case stage:
		list(&s.orphans) // or running: recover tells
	case aside:
		s.asides++
		if f.before(s.partialBefore) {
			list(&s.partials)
		}
	case t != s.j.home: // what lies in a share is not one user's to remove
	default:
		// All that rotation could remove, not only what fits into the heap: it
		// begins only if that is enough.
		if s.oldest > 0 && !s.j.set.used(f.id) && !isPartial(dir, name) {
			s.spare.bytes = addSat(s.spare.bytes, f.size)
			s.spare.files++
			if len(s.old) < s.oldest || f.before(time.Unix(s.old[0].sec, s.old[0].nsec)) {
				f.rel = path.Join(rel, name)
				if heap.Push(&s.old, f); len(s.old) > s.oldest {
					heap.Pop(&s.old)
				}
			}
		}
		switch {
		case f.sec < clockUnset && int64(st.Ctim.Sec) < clockUnset:
			list(&s.undated)
		case f.before(s.expireBefore):
			list(&s.expired)
		case s.firstFile == 0 || f.sec < s.firstFile:
			s.firstFile = f.sec
		}
	}
}

// --- the loop ---

// A housekeeper is the one goroutine that does all this.
type housekeeper struct {
	users  func() []*user
	user   func(name string) *user
	jails  *jailSet
	ledger *ledger
	config func() *config
	log    *slog.Logger

	ctx      context.Context
	requests chan func()
	begun    sync.Once
	done     chan struct{} // closed when run has returned

	mu  sync.Mutex
	due map[string]time.Time // by user: when his home is to be swept; guarded by mu

	// of the goroutine alone
	started    time.Time
	urgent     map[string]bool    // users whose first sweep somebody may wait for
	candidates map[fileID][]found // by home: the oldest files, oldest first
	saved      time.Time
	lastWall   time.Time // without the monotonic clock
	lastTick   time.Time
	quietUntil time.Time // nothing is removed for its age before
}

func newHousekeeper(ctx context.Context, us *users, jails *jailSet, cfg func() *config, log *slog.Logger) *housekeeper {
	h := &housekeeper{users: us.all, user: us.get, jails: jails, ledger: jails.ledger, config: cfg, log: log, ctx: ctx,
		requests: make(chan func()), done: make(chan struct{}), due: map[string]time.Time{}, candidates: map[fileID][]found{}, urgent: map[string]bool{}}
	jails.makeRoom = h.makeRoom
	jails.attend = h.attend
	jails.logger = log
	return h
}

// attend has a user's home swept at that time, unless that is due before.
func (h *housekeeper) attend(user string, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t, ok := h.due[user]; !ok || at.Before(t) {
		h.due[user] = at
	}
}

// start runs the loop until the server ends; end waits for that.
func (h *housekeeper) start() { h.begun.Do(func() { go h.run() }) }

func (h *housekeeper) run() {
	defer close(h.done)
	tick := time.NewTicker(houseTick)
	defer tick.Stop()
	h.started = time.Now()
	h.lastTick = h.started
	h.lastWall = h.lastTick.Round(0)
	h.saved = h.lastTick
	h.adopt()
	h.save(false)
	for {
		for h.turn() && h.pause(false) == nil {
		}
		select {
		case <-h.ctx.Done():
			return
		case fn := <-h.requests:
			fn()
		case <-tick.C:
		}
	}
}

// adopt opens the balance of every user whose home is there, and plans the
// first sweeps: at once where the ledger is in doubt, else spread over the time.
func (h *housekeeper) adopt() {
	for _, u := range h.users() {
		h.plan(u)
	}
}

func (h *housekeeper) plan(u *user) {
	dir, err := os.Open(u.Home)
	if err != nil {
		return
	}
	defer dir.Close()
	var home entry
	if fstat(dir, &home) != nil {
		return
	}
	now := time.Now()
	later := cmp.Or(h.config().Transfer.PartialTTL.std(), countEvery)
	if u.Expire > 0 {
		later = min(later, sweepMin)
	}
	if u.Quota != "filesystem" {
		b := h.ledger.open(u.Name, u.Home, home.id(), birth(dir), false)
		b.mu.Lock()
		if !b.exact {
			later = 0
		}
		b.mu.Unlock()
	} else if !h.ledger.clean {
		later = 0
	}
	if later == 0 {
		h.urgent[u.Name] = true
	} else {
		hash := fnv.New32a()
		hash.Write([]byte(u.Name))
		later = min(later, countEvery) - time.Duration(hash.Sum32())%(min(later, countEvery)/2+1)
	}
	h.attend(u.Name, now.Add(later))
}

// turn does what is due, one home at most, and tells whether there was one.
func (h *housekeeper) turn() bool {
	now := time.Now()
	h.watchClock(now)
	if now.Sub(h.saved) >= ledgerEvery {
		h.saved = now
		for _, u := range h.users() { // who was added since
			h.mu.Lock()
			_, planned := h.due[u.Name]
			h.mu.Unlock()
			if !planned {
				h.plan(u)
			}
		}
		h.save(false)
		for id := range h.candidates { // who needs them soon again will find them again
			delete(h.candidates, id)
		}
	}
	h.mu.Lock()
	name := ""
	for user, at := range h.due {
		if !at.After(now) && (name == "" || at.Before(h.due[name])) {
			name = user
		}
	}
	if name != "" {
		delete(h.due, name)
	}
	h.mu.Unlock()
	if name == "" {
		return false
	}
	u := h.user(name)
	if u == nil {
		return true
	}
	known := true
	if b := h.ledger.user(name); b != nil {
		_, _, known = b.usage()
	}
	background := known && !h.urgent[name]
	delete(h.urgent, name)
	if _, _, err := h.sweep(u, background); err != nil && !errors.Is(err, os.ErrNotExist) && h.ctx.Err() == nil {
		h.log.Error("home not counted", "user", name, "home", u.Home, "error", err)
		h.attend(name, now.Add(sweepMax))
	}
	return true
}

// watchClock notices a clock that was set: for a while then no age is believed.
func (h *housekeeper) watchClock(now time.Time) {
	wall := now.Round(0)
	ran := now.Sub(h.lastTick)
	if jump := wall.Sub(h.lastWall) - ran; jump > clockSlack || jump < -clockSlack {
		h.log.Warn("the clock was set; files are not removed for their age for a while", "by", jump.Round(time.Second), "pause", clockPause)
		h.quietUntil = now.Add(clockPause)
	}
	h.lastTick, h.lastWall = now, wall
}

func (h *housekeeper) save(clean bool) {
	homes := map[string]string{}
	for _, u := range h.users() {
		if u.Quota != "filesystem" {
			homes[u.Name] = u.Home
		}
	}
	if err := h.ledger.save(homes, clean); err != nil {
		h.log.Error("the quota ledger cannot be written; after a crash homes are counted from older figures", "error", err)
	}
}

// end writes the ledger for the last time; quiet tells that every session has
// ended, so that the next start need not count.
func (h *housekeeper) end(quiet bool) {
	<-h.done
	h.save(quiet)
	h.ledger.close()
}

// pause is the pace of sweeps: requests are served in between, and background
// sweeps rest.
func (h *housekeeper) pause(background bool) error {
	if !background {
		select {
		case fn := <-h.requests:
			fn()
		default:
		}
		return h.ctx.Err()
	}
	t := time.NewTimer(sweepPause)
	defer t.Stop()
	for {
		select {
		case fn := <-h.requests:
			fn()
		case <-t.C:
			return nil
		case <-h.ctx.Done():
			return h.ctx.Err()
		}
	}
}

// sweep counts one user's home and does what there is to do.
func (h *housekeeper) sweep(u *user, background bool) (was, is ledgerEntry, err error) {
	if _, err := os.Stat(u.Home); err != nil {
		return was, is, err // enter would make it
	}
	j, err := h.jails.enter(u.jailSpec())
	if err != nil {
		return was, is, err
	}
	defer h.jails.leave(j)
	h.mu.Lock()
	delete(h.due, u.Name) // what enter asks for is done here
	h.mu.Unlock()
	started := time.Now()
	s := &sweep{j: j, pace: func() error { return h.pause(background) }}
	for _, other := range h.users() {
		if other.Name != u.Name && other.Home == u.Home && len(other.Shares) > 0 && j.balance != nil {
			if o, err := h.jails.enter(other.jailSpec()); err == nil {
				defer h.jails.leave(o)
				s.others = append(s.others, o)
			} else {
				s.unseen = true
			}
		}
	}
	ttl := h.config().Transfer.PartialTTL.std()
	if !started.Before(h.quietUntil) {
		if ttl > 0 {
			s.partialBefore = started.Add(-ttl)
		}
		if u.Expire > 0 {
			s.expireBefore = started.Add(-u.Expire.std())
		}
	}
	was, is, err = s.count()
	if err != nil {
		return was, is, err
	}
	level := slog.LevelDebug
	if was.Bytes != is.Bytes || was.Files != is.Files {
		level = slog.LevelInfo
		h.save(false) // a crash need not cost another count
	}
	h.log.Log(h.ctx, level, "home counted", "user", u.Name, "bytes", is.Bytes, "files", is.Files,
		"ledger_bytes", was.Bytes, "ledger_files", was.Files, "exact", is.Exact, "dur", time.Since(started).Round(time.Millisecond))

	running := 0
	for i := range s.orphans {
		if !h.recovered(j, &s.orphans[i]) {
			running++
		}
	}
	stuck := false
	for i := range s.partials {
		if f := &s.partials[i]; j.removeFound(f, false) != nil {
			stuck = true
		} else {
			h.log.Info("partial removed", "user", u.Name, "path", f.rel, "bytes", f.size, "result", "older than partial_ttl")
		}
	}
	for i := range s.expired {
		if f := &s.expired[i]; j.removeFound(f, false) != nil {
			stuck = true // being read, most likely
		} else {
			h.log.Info("file removed", "user", u.Name, "path", "/"+f.rel, "bytes", f.size, "modified", time.Unix(f.sec, f.nsec).UTC(), "result", "expired")
		}
	}
	for i := range s.undated {
		if u.Expire > 0 && started.Unix() > clockUnset {
			j.setTimes("/"+s.undated[i].rel, started) // its age begins now
		}
	}

	next := countEvery
	soon := func(d time.Duration) { next = min(next, max(d, sweepMin)) }
	if j.balance != nil && !is.Exact {
		soon(recountMin)
	}
	if s.truncated {
		soon(0)
	}
	if u.Expire > 0 {
		soon(sweepMax)
		if s.firstFile > 0 {
			soon(time.Until(time.Unix(s.firstFile, 0).Add(u.Expire.std() + time.Second)))
		}
	}
	if running > 0 {
		soon(recountMin) // should its berth die, and not be this one
	}
	if s.asides > 0 && ttl > 0 {
		soon(min(max(ttl/8, sweepMin), sweepMax))
	}
	if stuck {
		soon(recountMin)
	}
	if quiet := time.Until(h.quietUntil); quiet > 0 {
		next = max(next, quiet)
	}
	h.attend(u.Name, time.Now().Add(next))
	return was, is, nil
}

// count is a sweep that only takes its figures over into the ledger.
func (s *sweep) count() (was, is ledgerEntry, err error) {
	if s.j.balance == nil {
		return was, is, s.run()
	}
	m := s.j.balance.mark()
	if err := s.run(); err != nil {
		return was, is, err
	}
	was, is = s.j.balance.settle(m, s.bytes, s.files, !s.unseen)
	return was, is, nil
}

// recovered makes a partial of what a crash left, or removes it; false: it was
// left as it is.
func (h *housekeeper) recovered(j *jail, f *found) bool {
	result, err := j.recoverStage(f, h.started)
	switch {
	case err != nil:
		h.log.Warn("staging file not recovered", "user", j.key.user, "path", f.rel, "error", err)
	case result != "":
		h.log.Warn("upload cut short by a crash", "user", j.key.user, "path", f.rel, "bytes", f.size, "result", result)
	}
	return result != ""
}

// ask has fn done by the loop and waits for it.
func (h *housekeeper) ask(fn func() error) error {
	done := make(chan error, 1)
	select {
	case h.requests <- func() { done <- fn() }:
		return <-done
	case <-h.ctx.Done():
		return context.Canceled
	}
}

// scan counts a user's home now.
func (h *housekeeper) scan(u *user) (was, is ledgerEntry, err error) {
	err = h.ask(func() (err error) {
		was, is, err = h.sweep(u, false)
		return err
	})
	return was, is, err
}

// --- rotation ---

var errNothingOld = errors.New("no old file that could make room")

// makeRoom removes a user's oldest complete files until his quota has room for
// so much more. It removes nothing if that would not be enough.
func (h *housekeeper) makeRoom(j *jail, bytes, files int64) error {
	return h.ask(func() error {
		q := j.key.quota
		if q.bytes > 0 && bytes > q.bytes || q.files > 0 && files > q.files {
			return errNothingOld
		}
		id, walked := j.home.id, false
		for {
			if j.balance.has(q, bytes, files) {
				return nil
			}
			list := h.candidates[id]
			if len(list) == 0 {
				if walked {
					return errNothingOld
				}
				walked = true
				s := &sweep{j: j, oldest: keptOldest, pace: func() error { return h.ctx.Err() }}
				if err := s.walk(j.home); err != nil {
					return err
				}
				if !j.balance.has(q, bytes-s.spare.bytes, files-s.spare.files) {
					return errNothingOld
				}
				list = make([]found, len(s.old))
				for i := len(list) - 1; i >= 0; i-- {
					list[i] = heap.Pop(&s.old).(found)
				}
				h.candidates[id] = list
				continue
			}
			f := list[0]
			h.candidates[id] = list[1:]
			if j.removeFound(&f, true) == nil {
				walked = false
				h.log.Info("file removed", "user", j.key.user, "path", "/"+f.rel, "bytes", f.size, "modified", time.Unix(f.sec, f.nsec).UTC(), "result", "rotated")
			}
		}
	})
}
