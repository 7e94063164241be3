// house.go keeps house: one loop that counts homes, makes partials of what a
// crash has left, and removes partials and files whose time is over. It is apart
// from fs.go and ledger.go, which do each of these things to one name, because it
// decides when and to which, and bounds the work of a turn.
//
// One loop decides; each sweep has a goroutine of its own, few at a time, so that
// a home that hangs (a network disk whose server is gone) holds up nobody else.

package main

import (
	"container/heap"
	"context"
	"errors"
	"log/slog"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	houseTick   = time.Second      // how late housekeeping can be
	hurryTicks  = 10               // for sessions that were kicked to end
	ledgerEvery = time.Minute      // how old the ledger on disk gets while things change
	countEvery  = 24 * time.Hour   // each home is counted anew, for what changed behind berth's back
	recountMin  = time.Minute      // after a count that was disturbed
	sweepMin    = time.Second      // between two sweeps for files and partials whose time is over
	sweepMax    = time.Hour        // the same
	stuckCheck  = 10 * time.Minute // for what could not be removed, as it was being read
	clockSlack  = 10 * time.Minute // a clock that moves by more than it ran was set
	clockPause  = time.Hour        // nothing is removed for its age so long after that

	sweepsAtOnce = 2                // a disk is not read faster by more
	sweepStuck   = time.Minute      // without looking at another sweepBatch of names
	sweepsHung   = 8                // then no more are begun: so many homes hang
	scanMost     = 10 * time.Minute // that somebody waits for a count
	sweepGrace   = 5 * time.Second  // at the end, for sweeps to notice it

	// A sweep that nobody waits for pauses after so many names: a home of a
	// million files takes a minute, and an idle core hardly notices.
	sweepBatch     = 1000
	sweepPause     = 50 * time.Millisecond
	sweepList      = 1000    // names one sweep acts on; more are left for the next one
	sweepListBytes = 8 << 20 // of all their paths
	keptOldest     = 512     // names that one sweep finds for rotation
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
	undated      []found          // files of a time when the clock was not set
	old          oldest           // a heap, the youngest first
	asides       int              // partials kept aside, over or not
	kept         map[fileID]int64 // partials, these and the marked ones, with the time of their last byte
	firstFile    int64            // mtime of the oldest file whose time is not over, in Unix seconds; 0: none
	spare        quota            // what the files take that rotation may remove
	unseen       int              // directories that could not be looked at, and shares that are not there
	firstUnseen  string
	unseenErr    error
	listBytes    int            // of names on the lists
	shared       bool           // shares were walked too
	truncated    bool           // there was more to do than the lists hold
	markless     map[*tree]bool // trees whose disk keeps no marks of partials
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
		for _, err := range j.missing {
			s.uncounted("", err)
		}
		for _, t := range j.shares {
			if t.write && !been[t.id] {
				been[t.id] = true
				s.shared = true
				if err := s.walk(t); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// A dirNode is a directory still to be visited, by its name in another one: whole
// paths would take memory by the square of the depth.
type dirNode struct {
	in   *dirNode
	name string
}

func (d *dirNode) path() string {
	n := 0
	for e := d; e != nil; e = e.in {
		n += len(e.name) + 1
	}
	b := make([]byte, n)
	for e := d; e != nil; e = e.in {
		n -= len(e.name) + 1
		b[n] = '/'
		copy(b[n+1:], e.name)
	}
	return path.Clean(string(b[1:]))
}

// walk visits every directory of a tree, each opened by its path below the
// tree and closed before the next: what is held is the names of directories
// still to be visited.
func (s *sweep) walk(t *tree) error {
	bp := direntBuffers.Get().(*[]byte)
	defer direntBuffers.Put(bp)
	pending := []*dirNode{{name: "."}}
	for len(pending) > 0 {
		node := pending[len(pending)-1]
		pending = pending[:len(pending)-1]
		rel := node.path()
		if s.seen += 1 + len(rel)/maxName; s.seen >= sweepBatch { // a long path takes long to open
			s.seen = 0
			if err := s.pace(); err != nil {
				return err
			}
		}
		dir, err := t.openDeep(rel)
		if err != nil {
			if rel == "." {
				return err
			}
			if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) { // else it went meanwhile, or a file has its name
				s.uncounted(rel, err)
			}
			continue
		}
		err = s.visit(t, node, rel, dir, *bp, &pending)
		dir.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

//go:noinline
func (s *sweep) uncounted(rel string, err error) {
	if s.unseen++; s.unseen == 1 {
		s.firstUnseen, s.unseenErr = rel, err
	}
}

// visit looks at each name of one directory.
func (s *sweep) visit(t *tree, node *dirNode, rel string, dir *os.File, buf []byte, pending *[]*dirNode) error {
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
			if s.seen++; s.seen >= sweepBatch {
				s.seen = 0
				if err := s.pace(); err != nil {
					return err
				}
			}
			isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
			isFile := st.Mode&unix.S_IFMT == unix.S_IFREG
			if isDir {
				*pending = append(*pending, &dirNode{node, strings.Clone(name)})
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
	if s.kept != nil && len(s.kept) < partialsKept && (aside || !stage && st.Size > 0 && s.marked(t, dir, name)) {
		s.kept[f.id] = f.sec
	}
	list := func(to *[]found) {
		if len(*to) >= sweepList || s.listBytes > sweepListBytes {
			s.truncated = true
			return
		}
		f.rel = path.Join(rel, name)
		s.listBytes += len(f.rel)
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

// A housekeeper decides when homes are swept.
type housekeeper struct {
	users  *users
	jails  *jailSet
	ledger *ledger
	config func() *config
	log    *slog.Logger

	openHome func(string) (int, error) // a test has its own

	ctx   context.Context
	begun sync.Once
	asked chan *sweepJob
	over  chan *sweepJob
	done  chan struct{} // closed when run has returned
	busy  atomic.Int32  // active, for those who are not the loop
	hurry atomic.Int32  // ticks at which to look for homes to let go of

	mu         mutex
	due        map[string]time.Time     // by user: when his home is to be swept
	urgent     map[string]bool          // users whose first sweep somebody may wait for
	rotations  map[fileID]*rotation     // by home
	backoff    map[string]time.Duration // by user: since his home was last counted quietly
	quietUntil time.Time                // nothing is removed for its age before
	noHome     map[string]string        // by user: the home that he is to have and that is not there
	walking    map[string]int           // by user: sweeps of his home that run and are not given up
	looks      map[string]*homeLook     // by user: looks at his home that have not ended

	// of the loop alone
	started  time.Time
	running  map[*sweepJob]bool // false: given up
	saved    time.Time
	lastWall time.Time // without the monotonic clock
	lastTick time.Time
}

// sweepJob is one sweep.
type sweepJob struct {
	u          *user
	background bool
	seen       atomic.Int64 // names looked at so far
	noted      int64        // of these, when the loop last looked
	moved      time.Time    // when it last saw them grow

	was, is ledgerEntry
	err     error
	done    chan struct{}
}

func newHousekeeper(ctx context.Context, us *users, jails *jailSet, cfg func() *config, log *slog.Logger) *housekeeper {
	h := &housekeeper{users: us, jails: jails, ledger: jails.ledger, config: cfg, log: log, ctx: ctx,
		asked: make(chan *sweepJob), over: make(chan *sweepJob), done: make(chan struct{}),
		due: map[string]time.Time{}, urgent: map[string]bool{}, rotations: map[fileID]*rotation{}, running: map[*sweepJob]bool{}, backoff: map[string]time.Duration{},
		noHome: map[string]string{}, walking: map[string]int{}, looks: map[string]*homeLook{}, openHome: openHome}
	jails.makeRoom = h.makeRoom
	jails.recount = h.recount
	jails.attend = h.attend
	jails.stopping = ctx.Done()
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

// reloaded has homes of users who are disabled now let go of as soon as their sessions
// have ended: somebody is about to unmount a disk.
func (h *housekeeper) reloaded() { h.hurry.Store(hurryTicks) }

// start runs the loop until the server ends; end waits for that.
func (h *housekeeper) start() { h.begun.Do(func() { go h.run() }) }

func (h *housekeeper) run() {
	defer close(h.done)
	tick := time.NewTicker(houseTick)
	defer tick.Stop()
	h.started = time.Now()
	h.lastTick = h.started
	h.lastWall = h.started.Round(0)
	h.saved = h.started
	planned := make(chan struct{}) // closed when everybody's first sweep is planned
	go func(planned chan struct{}) {
		defer close(planned)
		h.planAll()
	}(planned)
	for {
		h.sweepDue()
		h.busy.Store(int32(h.active()))
		select {
		case <-h.ctx.Done():
			h.stop(planned)
			return
		case j := <-h.asked:
			h.begin(j)
		case j := <-h.over:
			h.ended(j)
		case <-planned:
			planned = nil
		case now := <-tick.C:
			h.watchClock(now)
			h.watchSweeps(now)
			if n := h.hurry.Load(); n > 0 {
				h.hurry.Store(n - 1)
				h.ledger.letGo(h.users.all(), h.jails.counted())
			}
			if now.Sub(h.saved) < ledgerEvery {
				continue
			}
			h.saved = now
			h.save(false)
			h.ledger.letGo(h.users.all(), h.jails.counted())
			h.forgetRotations(now)
			if planned == nil { // else homes are slow
				planned = make(chan struct{})
				go func(planned chan struct{}) {
					defer close(planned)
					h.planAll() // who was added since
				}(planned)
			}
		}
	}
}

// stop waits for what runs, but not for what hangs.
func (h *housekeeper) stop(planned chan struct{}) {
	t := time.NewTimer(sweepGrace)
	defer t.Stop()
	for h.active() > 0 || planned != nil {
		select {
		case j := <-h.over:
			h.ended(j)
		case <-planned:
			planned = nil
		case <-t.C:
			h.log.Warn("a sweep did not end in time")
			return
		}
	}
}

// active is how many sweeps are running and not given up. It is for the loop alone.
//
//go:noinline
func (h *housekeeper) active() int {
	n := 0
	for _, alive := range h.running {
		if alive {
			n++
		}
	}
	return n
}

// sweepDue begins what is due, as far as there is a place for it.
func (h *housekeeper) sweepDue() {
	for h.active() < sweepsAtOnce && len(h.running) < sweepsHung {
		now := time.Now()
		h.mu.Lock()
		name, urgent := "", false
		for user, at := range h.due {
			if !at.After(now) && (name == "" || at.Before(h.due[name])) {
				name = user
			}
		}
		if name != "" {
			urgent = h.urgent[name]
			h.due[name] = now.Add(countEvery) // planned, also should it hang; it will say when
			delete(h.urgent, name)
		}
		h.mu.Unlock()
		if name == "" {
			return
		}
		u := h.users.get(name)
		if u == nil {
			continue
		}
		known := true
		if b := h.ledger.user(name); b != nil {
			_, _, known = b.usage()
		}
		h.begin(&sweepJob{u: u, background: known && !urgent, done: make(chan struct{})})
	}
}

func (h *housekeeper) begin(j *sweepJob) {
	h.running[j] = true
	h.walks(j.u.Name, 1)
	j.moved = time.Now()
	go func() {
		j.was, j.is, j.err = h.sweep(j)
		if errors.Is(j.err, errOtherBerth) { // the log has it
			h.attend(j.u.Name, time.Now().Add(homeLockLinger))
		} else if j.err != nil && !errors.Is(j.err, os.ErrNotExist) && h.ctx.Err() == nil {
			h.log.Error("home not counted", "user", j.u.Name, "home", j.u.Home, "error", j.err)
			h.attend(j.u.Name, time.Now().Add(sweepMax))
		}
		close(j.done)
		select {
		case h.over <- j:
		case <-h.done:
		}
	}()
}

func (h *housekeeper) ended(j *sweepJob) {
	if h.running[j] {
		h.walks(j.u.Name, -1)
	}
	delete(h.running, j)
}

// watchSweeps gives up those that do not get on: their homes hang, and they hold
// up nobody from then on.
func (h *housekeeper) watchSweeps(now time.Time) {
	for j, alive := range h.running {
		if n := j.seen.Load(); n != j.noted || !alive {
			j.noted, j.moved = n, now
		} else if now.Sub(j.moved) > sweepStuck {
			h.running[j] = false
			h.walks(j.u.Name, -1)
			h.noAnswer(j.u, now.Sub(j.moved))
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.looks {
		if stuck := now.Sub(l.since); stuck > sweepStuck && !l.told {
			l.told = true
			h.noAnswer(l.u, stuck)
		}
	}
}

func (h *housekeeper) noAnswer(u *user, stuck time.Duration) {
	h.log.Error("home does not answer", "user", u.Name, "home", u.Home, "for", stuck.Round(time.Second))
}

// watchClock notices a clock that was set: for a while then no age is believed.
func (h *housekeeper) watchClock(now time.Time) {
	wall := now.Round(0)
	ran := now.Sub(h.lastTick)
	if jump := wall.Sub(h.lastWall) - ran; jump > clockSlack || jump < -clockSlack {
		h.log.Warn("the clock was set; files are not removed for their age for a while", "by", jump.Round(time.Second), "pause", clockPause)
		h.mu.Lock()
		h.quietUntil = now.Add(clockPause)
		h.mu.Unlock()
	}
	h.lastTick, h.lastWall = now, wall
}

func (h *housekeeper) save(clean bool) {
	if err := h.ledger.save(h.counted(), clean); err != nil {
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

// pause is the pace of a sweep: in the background it rests now and then.
func (h *housekeeper) pause(background bool) error {
	if !background {
		return h.ctx.Err()
	}
	t := time.NewTimer(sweepPause)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-h.ctx.Done():
		return h.ctx.Err()
	}
}

// sweep counts one user's home and does what there is to do.
func (h *housekeeper) sweep(job *sweepJob) (was, is ledgerEntry, err error) {
	u := job.u
	if _, err := os.Stat(u.Home); err != nil {
		return was, is, err // enter would make it
	}
	j, err := h.jails.enter(h.users.jailSpec(u))
	if err != nil {
		return was, is, err
	}
	defer h.jails.leave(j)
	h.mu.Lock()
	h.due[u.Name] = time.Now().Add(countEvery) // what enter asks for is done here
	quietUntil := h.quietUntil
	h.mu.Unlock()
	started := time.Now()
	s := &sweep{j: j, kept: map[fileID]int64{}, pace: func() error {
		job.seen.Add(sweepBatch)
		return h.pause(job.background)
	}}
	h.users.known(func(other *user) {
		if other.Name != u.Name && other.Home == u.Home && len(other.Shares) > 0 && j.balance != nil {
			if o, err := h.jails.enter(h.users.jailSpec(other)); err == nil {
				s.others = append(s.others, o)
			} else {
				s.uncounted("", err)
			}
		}
	})
	defer func() {
		for _, o := range s.others {
			h.jails.leave(o)
		}
	}()
	ttl := h.config().Transfer.PartialTTL.std()
	if !started.Before(quietUntil) {
		if ttl > 0 {
			s.partialBefore = started.Add(-ttl)
		}
		if u.Expire > 0 {
			s.expireBefore = started.Add(-u.Expire.std())
		}
	}
	walked := h.jails.partials.walk(u.Name)
	was, is, quiet, err := s.count()
	if err != nil {
		s.kept = nil
	}
	walked(s.kept)
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
			h.jails.partials.remove(f.id)
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
	if j.balance != nil {
		// A home that is never quiet is not counted for ever.
		h.mu.Lock()
		if quiet {
			delete(h.backoff, u.Name)
		} else {
			h.backoff[u.Name] = min(max(recountMin, 2*h.backoff[u.Name]), countEvery)
			soon(h.backoff[u.Name])
		}
		h.mu.Unlock()
		if _, _, known := j.balance.usage(); !known {
			soon(0)
		}
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
		soon(stuckCheck)
	}
	if quiet := time.Until(quietUntil); quiet > 0 {
		next = max(next, quiet)
	}
	h.attend(u.Name, time.Now().Add(next))
	return was, is, nil
}

// count is a sweep that only takes its figures over into the ledger.
func (s *sweep) count() (was, is ledgerEntry, quiet bool, err error) {
	if s.j.balance == nil {
		return was, is, true, s.run()
	}
	m, shaken := s.j.balance.mark(), s.j.set.shareShaken.Load()
	steady := func() bool {
		return !s.shared || s.j.set.shareBusy.Load() == 0 && s.j.set.shareShaken.Load() == shaken
	}
	if err := s.run(); err != nil {
		return was, is, false, err
	}
	if s.unseen > 0 {
		s.j.set.log().Warn("not all of a home could be counted", "user", s.j.key.user, "directories", s.unseen, "first", s.firstUnseen, "error", s.unseenErr)
	}
	was, is, quiet = s.j.balance.settle(m, s.bytes, s.files, s.unseen == 0, steady)
	return was, is, quiet, nil
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

// scan counts a user's home now.
func (h *housekeeper) scan(u *user) (was, is ledgerEntry, err error) {
	j := &sweepJob{u: u, done: make(chan struct{})}
	select {
	case h.asked <- j:
	case <-h.ctx.Done():
		return was, is, context.Canceled
	}
	select {
	case <-j.done:
		return j.was, j.is, j.err
	case <-time.After(scanMost):
		return was, is, newError("the home does not answer")
	case <-h.ctx.Done():
		return was, is, context.Canceled
	}
}

// recount counts a user's home before he is refused something for want of room,
// if b, which is his, was not counted of late.
func (h *housekeeper) recount(j *jail, b *balance) bool {
	if b != j.balance {
		return false
	}
	b.mu.Lock()
	old := time.Now().Unix()-b.last > int64(recountMin/time.Second)
	b.mu.Unlock()
	u := h.users.get(j.key.user)
	if !old || u == nil {
		return false
	}
	_, _, err := h.scan(u)
	return err == nil
}
