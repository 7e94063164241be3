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
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
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

	// writeAhead is the most that one upload may have reserved and not yet
	// written: a pipe's or a buffer's worth.
	writeAhead = pipeSize
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
	dir   string
	log   *slog.Logger
	lock  *os.File    // nil: another berth keeps this ledger, or nobody does
	dirty atomic.Bool // something changed since it was written

	mu    sync.Mutex
	homes map[fileID]*balance
	users map[string]*balance
	past  map[string]ledgerEntry // by home: from the last run, until asked for
	clean bool                   // the last run ended in order
}

// A balance is what is stored in one home, and elsewhere in its user's name. A
// nil one counts nothing and refuses nothing. Safe for concurrent use.
type balance struct {
	ledger *ledger
	home   string
	id     fileID

	mu           sync.Mutex
	bytes, files int64
	// moved grows with every change, whichever way: how far a count of the disk
	// made meanwhile can be off.
	moved, movedFiles int64
	busy              int32         // uploads and changes of names that are going on
	known             bool          // false: bytes and files are only what changed since the start
	exact             bool          // they are what is on the disk, as far as berth's own doing goes
	counted           chan struct{} // closed once known; nil if nobody waits
}

// ledgerEntry is one balance as it is kept.
type ledgerEntry struct {
	Home  string `json:"home"`
	Inode uint64 `json:"inode"` // another directory in the home's place is counted anew
	Bytes int64  `json:"bytes"`
	Files int64  `json:"files"`
	Exact bool   `json:"exact"`
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
	l := &ledger{dir: dir, log: log, homes: map[fileID]*balance{}, users: map[string]*balance{}}
	f, err := os.OpenFile(filepath.Join(dir, ledgerLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			l.lock = f
		} else {
			f.Close()
		}
	}
	if l.lock == nil {
		log.Warn("the quota ledger is another berth's; homes are counted, and nothing is kept", "dir", dir, "error", err)
		return l
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
			log.Warn("berth did not end in order the last time; all homes are counted")
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
		return nil, false, fmt.Errorf("more than %d bytes", maxLedgerBytes)
	}
	var lf ledgerFile
	if err := json.Unmarshal(data, &lf); err != nil {
		return nil, false, err
	}
	if lf.Version != ledgerVersion {
		return nil, false, fmt.Errorf("version %d, where %d is known", lf.Version, ledgerVersion)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, lf.Balances); err != nil {
		return nil, false, err
	}
	if sum := sha256.Sum256(compact.Bytes()); hex.EncodeToString(sum[:]) != lf.Sum {
		return nil, false, errors.New("its checksum does not match")
	}
	if err := json.Unmarshal(lf.Balances, &entries); err != nil {
		return nil, false, err
	}
	for _, e := range entries {
		if e.Bytes < 0 || e.Files < 0 {
			return nil, false, fmt.Errorf("negative numbers for %s", e.Home)
		}
	}
	return entries, lf.Clean, nil
}

// save writes the ledger, durably, leaving out homes that are nobody's. clean
// tells the next run that nothing was going on. It does nothing where another
// berth keeps the ledger.
func (l *ledger) save(wanted func(home string) bool, clean bool) error {
	if l.lock == nil {
		return nil
	}
	l.dirty.Store(false)
	l.mu.Lock()
	entries := make([]ledgerEntry, 0, len(l.homes)+len(l.past))
	for _, a := range l.homes {
		a.mu.Lock()
		if a.known && wanted(a.home) {
			entries = append(entries, ledgerEntry{Home: a.home, Inode: a.id.ino, Bytes: a.bytes, Files: a.files, Exact: a.exact && a.busy == 0})
		}
		a.mu.Unlock()
	}
	for home, e := range l.past { // as of a disk that is not plugged in now
		if wanted(home) {
			e.Exact = e.Exact && l.clean
			entries = append(entries, e)
		}
	}
	l.mu.Unlock()
	slices.SortFunc(entries, func(a, b ledgerEntry) int { return strings.Compare(a.Home, b.Home) })
	balances, err := json.Marshal(entries)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(balances)
	data, err := json.Marshal(ledgerFile{Version: ledgerVersion, Clean: clean, Balances: balances, Sum: hex.EncodeToString(sum[:])})
	if err != nil {
		return err
	}
	if err := writeFileAtomic(filepath.Join(l.dir, ledgerName), append(data, '\n'), 0o600); err != nil {
		l.dirty.Store(true)
		return err
	}
	d, err := os.Open(l.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (l *ledger) close() {
	if l.lock != nil {
		l.lock.Close()
	}
}

// open is the balance of user's home, which is the directory id. fresh tells
// that it was made just now, and so holds nothing.
func (l *ledger) open(user, home string, id fileID, fresh bool) *balance {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.homes[id]
	if a == nil {
		a = &balance{ledger: l, home: home, id: id}
		e, kept := l.past[home]
		delete(l.past, home)
		switch {
		case fresh:
			a.known, a.exact = true, true
		case kept && e.Inode == id.ino:
			a.known, a.bytes, a.files = true, e.Bytes, e.Files
			a.exact = l.clean && e.Exact
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
			if !used {
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
// its reservation, so no order of events takes anybody over his quota.
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
		if q.bytes > 0 && bytes > 0 && bytes > q.bytes-b.bytes {
			return &quotaError{bytes: bytes, files: files, left: max(q.bytes-b.bytes, 0)}
		}
		if q.files > 0 && files > 0 && files > q.files-b.files {
			return &quotaError{bytes: bytes, files: files, left: max(q.bytes-b.bytes, 0), full: true}
		}
	}
	b.change(bytes, files)
	return nil
}

// has tells whether reserve would find room.
func (b *balance) has(q quota, bytes, files int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return (q.bytes <= 0 || bytes <= 0 || bytes <= q.bytes-b.bytes) && (q.files <= 0 || files <= 0 || files <= q.files-b.files)
}

// add charges what is there already, or, negative, gives back what is gone.
func (b *balance) add(bytes, files int64) {
	if b == nil || bytes == 0 && files == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.change(bytes, files)
}

// change needs mu.
func (b *balance) change(bytes, files int64) {
	b.bytes += bytes
	b.files += files
	b.moved += max(bytes, -bytes)
	b.movedFiles += max(files, -files)
	if b.known && (b.bytes < 0 || b.files < 0) {
		// Something outside of berth added what is removed here. The next count
		// tells how much is left of it.
		b.bytes, b.files, b.exact = max(b.bytes, 0), max(b.files, 0), false
	}
	if b.ledger != nil && !b.ledger.dirty.Load() {
		b.ledger.dirty.Store(true)
	}
}

// begin and end frame what changes names or has something reserved.
func (b *balance) begin() {
	if b != nil {
		b.mu.Lock()
		b.busy++
		b.mu.Unlock()
	}
}

func (b *balance) end() {
	if b != nil {
		b.mu.Lock()
		b.busy--
		b.mu.Unlock()
	}
}

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

// wait waits until something is known, or returns errCounting after d.
func (b *balance) wait(d time.Duration) error {
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
		return errCounting
	}
}

// countMark is where a balance stood when a count of its home began.
type countMark struct {
	moved, movedFiles int64
	busy              int32
}

func (b *balance) mark() countMark {
	b.mu.Lock()
	defer b.mu.Unlock()
	return countMark{moved: b.moved, movedFiles: b.movedFiles, busy: b.busy}
}

// settle takes over what a count found that began at m, and tells what the
// ledger had and has. A count of a quiet home is the truth. While something was
// going on, the truth lies as far from the count, either way, as things moved
// meanwhile: what the ledger has stays if it lies within, and else goes to the
// near end. So the ledger never drifts further than a count is long, and the
// first quiet count mends it wholly.
func (b *balance) settle(m countMark, bytes, files int64) (was, is ledgerEntry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	was = ledgerEntry{Bytes: b.bytes, Files: b.files, Exact: b.exact}
	off := b.moved - m.moved + writeAhead*int64(max(m.busy, b.busy))
	offFiles := b.movedFiles - m.movedFiles + int64(max(m.busy, b.busy))
	if !b.known {
		// Up to now only changes were kept; what they changed is in the count.
		b.bytes, b.files = bytes, files
	}
	b.bytes = max(min(max(b.bytes, bytes-off), bytes+off), 0)
	b.files = max(min(max(b.files, files-offFiles), files+offFiles), 0)
	b.known = true
	b.exact = off == 0 && offFiles == 0
	if b.counted != nil {
		close(b.counted)
		b.counted = nil
	}
	if b.ledger != nil {
		b.ledger.dirty.Store(true)
	}
	return was, ledgerEntry{Bytes: b.bytes, Files: b.files, Exact: b.exact}
}
