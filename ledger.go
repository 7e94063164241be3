// ledger.go is the account of what every user stores: bytes and files, reserved
// before they are written (contract section 6). It is apart from fs.go, which
// tells it what happens to names, because it knows no names: only numbers, how
// they are kept over a restart, and what a count of the disk says about them.
//
// What counts, by name and so that every change can be told without looking at
// the rest of the disk: st_size of regular files, and one file for each name,
// directories included, as the inode quotas of Unix do. A file with two hard
// links in a home counts twice, a sparse one with its whole size.

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ledgerName     = "ledger"      // in the state directory
	ledgerLock     = "ledger.lock" // flock(2)ed by the berth that writes it
	ledgerVersion  = 1
	maxLedgerBytes = 64 << 20 // far above what 100,000 users take
	firstTries     = 3        // first counts that may be thrown away as disturbed
)

// A quota is what a user may store. 0 is no limit.
type quota struct{ bytes, files int64 }

// quotaError is a reservation that the quota has no room for.
type quotaError struct {
	bytes, files int64 // wanted
	left         int64 // bytes that are left
	full         bool  // of files, not of bytes
}

func (e *quotaError) Error() string {
	if e.full {
		return "over quota: no file more may be stored"
	}
	return fmt.Sprintf("over quota: %d bytes more, %d are left", e.bytes, e.left)
}

// errCounting is a reservation made before anything is known of what is stored.
var errCounting = errors.New("what is stored is still being counted")

// fileID is a file or directory by device and inode.
type fileID struct{ dev, ino uint64 }

func (e *entry) id() fileID { return fileID{e.dev, e.ino} }

// A ledger has one balance for each home directory; users who share a home
// share it, each under his own quota.
type ledger struct {
	dir    string
	log    *slog.Logger
	name   string   // tells it from other ledgers
	lock   *os.File // nil: another berth keeps this ledger, or nobody can: noLock tells. Guarded by writing, as noLock
	noLock error
	wrote  [sha256.Size]byte // of what was last written
	most   int               // homes that may be locked at once

	begun   sync.Once
	noLocks sync.Once
	writing mutex                     // held while the file is written
	begunAt atomic.Pointer[time.Time] // of the write that is under way; nil: none is

	mu       mutex
	partials *partialSet // kept with the balances, as of the homes of those who have one
	homes    map[fileID]*balance
	users    map[string]*balance
	held     map[fileID]*homeLock
	told     map[string]bool        // homes that another berth has, as the log has been told
	past     map[string]ledgerEntry // by home: from the last run, until asked for
	clean    bool                   // the last run ended in order
}

// A balance is what is stored in one home, and elsewhere in its user's name. A
// nil one counts nothing and refuses nothing. Safe for concurrent use.
type balance struct {
	id   fileID
	born int64

	mu           mutex
	bytes, files int64
	// Of these, what is reserved and not yet below a name that a count of the disk
	// looks at: staging files, and directories about to be made.
	inflight quota
	// moved grows with every change that a count can see before or after it was
	// noted here: how far a count made meanwhile can be off.
	moved   quota
	last    int64         // when it was last counted, in Unix seconds
	shaken  uint32        // changes whose size nobody knows: a count made meanwhile is worth nothing
	busy    int32         // changes of names that are just going on
	known   bool          // false: bytes and files are only what changed since the start
	exact   bool          // they are what is on the disk, up to what moved while it was counted
	tries   uint8         // first counts that were worth nothing
	counted chan struct{} // closed once known; nil if nobody waits
}

// ledgerEntry is one balance as it is kept.
type ledgerEntry struct {
	Home  string `json:"home"`
	Inode uint64 `json:"inode"` // another directory in the home's place is counted anew,
	Born  int64  `json:"born"`  // also one with the same number: Unix nanoseconds, 0 if the disk cannot tell
	Bytes int64  `json:"bytes"`
	Files int64  `json:"files"`
	Exact bool   `json:"exact"`
	// What interrupted uploads have left there, as partialSet.byUser writes it. Looked tells
	// none from not known.
	Looked   bool   `json:"looked,omitempty"`
	Partials string `json:"partials,omitempty"`
}

// ledgerFile is the whole file. Sum is the SHA-256 of Balances without white space.
type ledgerFile struct {
	Version  int             `json:"berth_ledger"`
	Clean    bool            `json:"clean"` // written at the end of a run, not during it
	Balances json.RawMessage `json:"balances"`
	Sum      string          `json:"sha256"`
}

// newLedger takes the ledger in dir over from the last run. It refuses nothing:
// a file that cannot be read, or is not whole, costs a count of every home.
func newLedger(dir string, log *slog.Logger) *ledger {
	l := &ledger{dir: dir, log: log, partials: newPartialSet(), homes: map[fileID]*balance{}, users: map[string]*balance{}, held: map[fileID]*homeLock{}, told: map[string]bool{}}
	var most unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &most) == nil {
		l.most = int(min(most.Cur, 1<<30)) / homeLockShare
	}
	var err error
	if l.lock, l.name, err = lockState(dir); l.lock == nil {
		l.name = newLedgerName() // for this run
		if l.noLock = err; errors.Is(err, unix.EWOULDBLOCK) {
			log.Warn("another berth keeps the quota ledger of this state directory; homes are counted, and nothing is kept until it has ended", "dir", dir)
		} else {
			log.Warn("the quota ledger cannot be kept; homes are counted at each start", "dir", dir, "error", err)
		}
		return l
	}
	// What a crash left of writing it.
	if left, err := filepath.Glob(filepath.Join(dir, newFilePrefix+"*")); err == nil {
		for _, name := range left {
			os.Remove(name)
		}
	}
	entries, clean, err := readLedger(filepath.Join(dir, ledgerName))
	switch {
	case errors.Is(err, os.ErrNotExist):
		l.clean = true // of nothing
	case err != nil:
		log.Warn("the quota ledger cannot be used; all homes are counted", "file", filepath.Join(dir, ledgerName), "error", err)
	default:
		l.past = make(map[string]ledgerEntry, len(entries))
		for _, e := range entries {
			l.past[e.Home] = e
		}
		if l.clean = clean; !clean {
			log.Warn("the last berth did not end in order; all homes are counted")
		}
	}
	return l
}

func readLedger(file string) (entries []ledgerEntry, clean bool, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxLedgerBytes+1))
	if err != nil {
		return nil, false, err
	}
	if len(data) > maxLedgerBytes {
		return nil, false, errorf("more than %d bytes", maxLedgerBytes)
	}
	var lf ledgerFile
	if err := json.Unmarshal(data, &lf); err != nil {
		return nil, false, err
	}
	if lf.Version != ledgerVersion {
		return nil, false, errorf("version %d, where %d is known", lf.Version, ledgerVersion)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, lf.Balances); err != nil {
		return nil, false, err
	}
	if sum := sha256.Sum256(compact.Bytes()); hexText(sum[:]) != lf.Sum {
		return nil, false, errors.New("its checksum does not match")
	}
	if err := json.Unmarshal(lf.Balances, &entries); err != nil {
		return nil, false, err
	}
	for _, e := range entries {
		if e.Bytes < 0 || e.Files < 0 {
			return nil, false, errorf("negative numbers for %s", e.Home)
		}
	}
	return entries, lf.Clean, nil
}

// save writes the ledger, durably, unless it stands on the disk already. homes
// are those that are somebody's, by user. clean tells the next run that nothing
// was going on. It does nothing where another berth keeps the ledger.
func (l *ledger) save(homes map[string]string, clean bool) error {
	if !l.keep() {
		return nil
	}
	byHome := map[string]ledgerEntry{}
	partials := l.partials.byUser()
	l.mu.Lock()
	for user, home := range homes {
		if a := l.users[user]; a != nil {
			a.mu.Lock()
			if a.known {
				e := ledgerEntry{Home: home, Inode: a.id.ino, Born: a.born, Bytes: a.bytes, Files: a.files, Exact: a.exact && a.inflight == quota{}}
				words, looked := partials[user]
				words = append(words, strings.Fields(byHome[home].Partials)...) // of users who share it
				slices.Sort(words)                                              // the same ones are the same ledger
				e.Looked, e.Partials = looked || byHome[home].Looked, strings.Join(words, " ")
				byHome[home] = e
			}
			a.mu.Unlock()
		} else if e, ok := l.past[home]; ok { // as of a disk that is not plugged in now
			e.Exact = e.Exact && l.clean
			byHome[home] = e
		}
	}
	l.mu.Unlock()
	return l.write(slices.Collect(maps.Values(byHome)), clean)
}

func (l *ledger) write(entries []ledgerEntry, clean bool) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	sort.Slice(entries, func(i, j int) bool { return entries[i].Home < entries[j].Home })
	if entries == nil {
		entries = []ledgerEntry{}
	}
	balances, err := json.Marshal(entries)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(balances)
	data, err := json.Marshal(ledgerFile{Version: ledgerVersion, Clean: clean, Balances: balances, Sum: hexText(sum[:])})
	if err != nil {
		return err
	}
	whole := sha256.Sum256(data)
	if whole == l.wrote {
		return nil
	}
	now := time.Now()
	l.begunAt.Store(&now)
	defer l.begunAt.Store(nil)
	if err := writeFileAtomic(filepath.Join(l.dir, ledgerName), append(data, '\n'), 0o600); err != nil {
		return err
	}
	d, err := os.Open(l.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return err
	}
	l.wrote = whole
	return nil
}

// stuck is how long the write that is under way has taken; 0: none is.
func (l *ledger) stuck() time.Duration {
	if at := l.begunAt.Load(); at != nil {
		return time.Since(*at)
	}
	return 0
}

// begin has the disk say that this run has begun to change things, before the
// first of them: what the last run left is no longer the truth after a crash.
func (l *ledger) begin() {
	l.begun.Do(func() {
		file := filepath.Join(l.dir, ledgerName)
		l.writing.Lock()
		kept := l.lock != nil
		l.writing.Unlock()
		l.mu.Lock()
		past, entries := l.past != nil, slices.Collect(maps.Values(l.past))
		l.mu.Unlock()
		if !kept || !past || !l.clean {
			return // there is nothing, or nothing that would be believed
		}
		err := l.write(entries, false)
		if err != nil { // as on a full disk
			err = os.Remove(file)
		}
		if err != nil {
			l.log.Error("the quota ledger cannot be marked as in use; after a crash it may be believed, and be wrong", "file", file, "error", err)
		}
	})
}

func (l *ledger) close() {
	l.mu.Lock()
	for _, h := range l.held {
		select {
		case <-h.tried:
			if h.file != nil {
				h.file.Close()
			}
		default: // its disk hangs
		}
	}
	clear(l.held)
	l.mu.Unlock()
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.lock != nil {
		l.lock.Close()
	}
}

// open is the balance of user's home, which is the directory id, born at that
// time. fresh tells that it was made just now, and so holds nothing.
func (l *ledger) open(user, home string, id fileID, born int64, fresh bool) *balance {
	l.begin()
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.homes[id]
	if a != nil && (a.born != born || fresh && born == 0) {
		delete(l.homes, id) // the directory is another one, under the old one's number
		a = nil
	}
	if a != nil && fresh { // another session was quicker
		a.mu.Lock()
		if !a.known {
			a.known, a.exact = true, true // what changed since it was made is all there is
			if a.counted != nil {
				close(a.counted)
				a.counted = nil
			}
		}
		a.mu.Unlock()
	}
	if a == nil {
		a = &balance{id: id, born: born}
		e, kept := l.past[home]
		if delete(l.past, home); len(l.past) == 0 {
			l.past = nil // a map does not shrink
		}
		switch {
		case fresh:
			a.known, a.exact = true, true
		case kept && e.Inode == id.ino && e.Born == born:
			a.known, a.bytes, a.files = true, e.Bytes, e.Files
			a.exact = l.clean && e.Exact
			if e.Looked && l.clean {
				l.partials.know(user, e.Partials)
			}
		}
		l.homes[id] = a
	}
	if old := l.users[user]; old != a {
		l.users[user] = a
		if old != nil { // his home is another one now
			used := false
			for _, b := range l.users {
				used = used || b == old
			}
			if !used && l.homes[old.id] == old {
				delete(l.homes, old.id)
			}
		}
	}
	return a
}

// user is the balance of a user who has been seen; nil for any other.
func (l *ledger) user(name string) *balance {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.users[name]
}

// reserve charges bytes and files if q has room for both, else it charges
// nothing: a *quotaError, or errCounting. Nothing that is written comes before
// its reservation, so no order of events takes anybody over his quota. What is
// reserved either lands or is given back by unreserve.
func (b *balance) reserve(q quota, bytes, files int64) error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if q.bytes > 0 && bytes > 0 || q.files > 0 && files > 0 {
		if !b.known {
			return errCounting
		}
		if !b.room(q, bytes, files) {
			left := max(q.bytes-b.bytes, 0)
			return &quotaError{bytes: bytes, files: files, left: left, full: q.bytes <= 0 || bytes <= left}
		}
	}
	b.inflight.bytes += bytes
	b.inflight.files += files
	b.change(bytes, files)
	return nil
}

// room needs mu.
func (b *balance) room(q quota, bytes, files int64) bool {
	return (q.bytes <= 0 || bytes <= 0 || bytes <= q.bytes-b.bytes) && (q.files <= 0 || files <= 0 || files <= q.files-b.files)
}

// has tells whether reserve would find room.
func (b *balance) has(q quota, bytes, files int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.room(q, bytes, files)
}

// unreserve gives back what was reserved and has not landed.
//
//go:noinline
func (b *balance) unreserve(bytes, files int64) {
	b.update(func() {
		b.inflight.bytes -= bytes
		b.inflight.files -= files
		b.change(-bytes, -files)
	})
}

// land tells that for what was reserved there is a name now, which takes has, in
// the place of one that took lost.
//
//go:noinline
func (b *balance) land(reserved, has, lost quota) {
	b.update(func() {
		b.inflight.bytes -= reserved.bytes
		b.inflight.files -= reserved.files
		b.change(has.bytes-reserved.bytes-lost.bytes, has.files-reserved.files-lost.files)
		b.move(has.bytes+lost.bytes, has.files+lost.files)
	})
}

// lift tells that what a name took is reserved for an upload now.
func (b *balance) lift(bytes, files int64) {
	b.update(func() {
		b.inflight.bytes += bytes
		b.inflight.files += files
		b.move(bytes, files)
	})
}

// take reserves, whatever the quota says, for what is on the disk already and
// was in no count.
func (b *balance) take(bytes, files int64) {
	b.update(func() {
		b.inflight.bytes += bytes
		b.inflight.files += files
		b.change(bytes, files)
	})
}

// drop tells that a name is gone, with what it took.
func (b *balance) drop(bytes, files int64) {
	b.update(func() {
		b.change(-bytes, -files)
		b.move(bytes, files)
	})
}

// shift tells that a name has become another one. bytes is below 0 if nobody
// knows how much is below it.
func (b *balance) shift(bytes int64) {
	b.update(func() {
		if bytes < 0 {
			b.shaken++
		}
		b.move(max(bytes, 0), 1)
	})
}

func (b *balance) update(fn func()) {
	if b != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		fn()
	}
}

func (b *balance) move(bytes, files int64) {
	b.moved.bytes = addSat(b.moved.bytes, bytes)
	b.moved.files += files
}

func (b *balance) change(bytes, files int64) {
	b.bytes = addSat(b.bytes, bytes)
	b.files += files
	if b.known && (b.bytes < 0 || b.files < 0) {
		// Something outside of berth added what is removed here. The next count
		// tells how much is left of it.
		b.bytes, b.files, b.exact = max(b.bytes, 0), max(b.files, 0), false
	}
}

// addSat adds, and stays within int64: sparse files can be as long as they like.
func addSat(a, b int64) int64 {
	switch sum := a + b; {
	case b > 0 && sum < a:
		return math.MaxInt64
	case b < 0 && sum > a:
		return math.MinInt64
	default:
		return sum
	}
}

// begin and end frame a change of names, from before the disk has it until it is
// noted here.
func (b *balance) begin() { b.update(func() { b.busy++ }) }
func (b *balance) end()   { b.update(func() { b.busy-- }) }

// usage tells what is stored; known is false while it is first being counted.
func (b *balance) usage() (bytes, files int64, known bool) {
	if b == nil {
		return 0, 0, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes, b.files, b.known
}

// left is how many bytes more q lets in; without a limit, or before anything
// is known, limited is false.
func (b *balance) left(q quota) (n int64, limited bool) {
	bytes, _, known := b.usage()
	if q.bytes <= 0 || !known {
		return 0, false
	}
	return max(q.bytes-bytes, 0), true
}

// wait waits until something is known, or returns errCounting after d or when
// stop is closed.
func (b *balance) wait(d time.Duration, stop <-chan struct{}) error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	if b.known {
		b.mu.Unlock()
		return nil
	}
	if b.counted == nil {
		b.counted = make(chan struct{})
	}
	c := b.counted
	b.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-c:
		return nil
	case <-t.C:
	case <-stop:
	}
	return errCounting
}

// countMark is where a balance stood when a count of its home began.
type countMark struct {
	moved  quota
	shaken uint32
}

func (b *balance) mark() countMark {
	b.mu.Lock()
	defer b.mu.Unlock()
	return countMark{moved: b.moved, shaken: b.shaken}
}

// settle takes over what a count found that began at m, of everything but
// staging files, and tells what the ledger had and has. A count of a quiet home
// is the truth. While names changed, the truth lies as far from the count, either
// way, as things moved meanwhile: what the ledger has stays if it lies within,
// and else goes to the near end. So the ledger never drifts further than a count
// is long, and the first quiet count mends it wholly; quiet tells of one. whole is
// false for a count that could not look everywhere: that can tell of more, beyond
// what moved, and not of less. steady tells whether nothing was done meanwhile to
// what the user has in shares, by others.
func (b *balance) settle(m countMark, bytes, files int64, whole bool, steady func() bool) (was, is ledgerEntry, quiet bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	was = ledgerEntry{Bytes: b.bytes, Files: b.files, Exact: b.exact}
	likely := b.shaken == m.shaken && b.busy == 0 && steady()
	sound := whole && likely
	off := quota{b.moved.bytes - m.moved.bytes, b.moved.files - m.moved.files}
	landed := quota{b.bytes - b.inflight.bytes, b.files - b.inflight.files}
	if !b.known && !sound && b.tries < firstTries {
		b.tries++ // better to have them wait than to begin with too little
		return was, was, false
	}
	switch {
	case !b.known:
		// Up to now only changes were kept; what they changed is in the count.
		landed = quota{bytes, files}
	case likely && !whole:
		landed = quota{max(landed.bytes, addSat(bytes, -off.bytes)), max(landed.files, files-off.files)}
	case sound:
		landed.bytes = min(max(landed.bytes, addSat(bytes, -off.bytes)), addSat(bytes, off.bytes))
		landed.files = min(max(landed.files, files-off.files), files+off.files)
	}
	b.bytes = addSat(max(landed.bytes, 0), b.inflight.bytes)
	b.files = max(landed.files, 0) + b.inflight.files
	b.known = true
	b.last = time.Now().Unix()
	b.exact = sound
	if b.counted != nil {
		close(b.counted)
		b.counted = nil
	}
	return was, ledgerEntry{Bytes: b.bytes, Files: b.files, Exact: b.exact}, sound && off == quota{}
}
