// commit.go brings uploads to stable storage together: sessions that wait at the
// same time share one flush of the file system (group commit). It is apart from
// upload.go, which says what has to be durable before what, because it knows no
// uploads: only descriptors, and who waits.
//
// A flush covers all who asked before it began: the data of some, the new names
// of others. Who is alone has his own file or directory flushed, and nothing else.

package main

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lingerMost is the longest that a flush waits for those who shared the last
	// one or waited while it ran, and no longer than half of what that took: a
	// small delay for each, for far fewer flushes in all. Else those who just
	// missed one and those who had it would take turns for ever.
	lingerMost = 5 * time.Millisecond

	// syncfs(2) writes everything that the file system has not written yet. That
	// pays for many small files; not beside a large upload, nor where somebody
	// else writes much, which shows by its time: then it is left off for a while.
	syncfsDirty = 32 << 20
	syncfsSlow  = 250 * time.Millisecond
	syncfsPause = 30 * time.Second

	// loneSync is from what size on a file is flushed by itself: it has little to
	// share, and would keep the others waiting.
	loneSync = 1 << 20
)

// syncGroups has one group for each file system with durable uploads on it.
type syncGroups struct {
	mu     mutex
	groups map[uint64]*syncGroup // by device
}

// A syncGroup is who waits for one file system.
type syncGroup struct {
	dev   uint64
	fd    int          // of the file system
	refs  int          // uploads that may come to wait; guarded by syncGroups.mu
	dirty atomic.Int64 // bytes they have written

	mu      mutex
	waiting []*syncWait
	leading bool          // somebody flushes, or is about to
	expect  int           // how many were there at the last flush
	full    chan struct{} // told when so many wait; buffered
	took    time.Duration // by the last flush
	slow    time.Time     // no syncfs before
	failed  bool          // no syncfs any more
}

// syncWait is one who waits. Once told by done, he either has his answer or is
// to lead the next flush.
type syncWait struct {
	fd   int
	dir  bool
	lead bool
	err  error
	done chan struct{}
}

// haveSyncfs tells whether syncfs(2) reports failed writes: from Linux 5.8 on.
var haveSyncfs = sync.OnceValue(func() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	major, minor := 0, 0
	n := &major
	for _, c := range u.Release {
		if c == '.' {
			if n == &minor {
				break
			}
			n = &minor
		} else if c < '0' || c > '9' {
			break
		} else {
			*n = *n*10 + int(c-'0')
		}
	}
	return major > 5 || major == 5 && minor >= 8
})

// join is called for each upload before it writes, with the directory it goes to.
func (s *syncGroups) join(dir parentDir) *syncGroup {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groups[dir.id.dev]
	if g == nil {
		fd, err := unix.FcntlInt(dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			fd = -1
		}
		g = &syncGroup{dev: dir.id.dev, fd: fd, full: make(chan struct{}, 1)}
		if s.groups == nil {
			s.groups = map[uint64]*syncGroup{}
		}
		s.groups[g.dev] = g
	}
	g.refs++
	return g
}

// leave ends what join began, for an upload that wrote n bytes.
func (s *syncGroups) leave(g *syncGroup, n int64) {
	g.dirty.Add(-n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.refs--; g.refs == 0 {
		delete(s.groups, g.dev)
		if g.fd >= 0 {
			unix.Close(g.fd)
		}
	}
}

// sync returns when the content of the file fd, or the names in the directory
// fd, are on stable storage, as far as they were there when it was called.
func (g *syncGroup) sync(fd int, dir bool) error {
	w := &syncWait{fd: fd, dir: dir, done: make(chan struct{})}
	g.mu.Lock()
	g.waiting = append(g.waiting, w)
	if g.leading {
		if len(g.waiting) >= g.expect {
			select {
			case g.full <- struct{}{}:
			default:
			}
		}
		g.mu.Unlock()
		<-w.done
		if !w.lead {
			return w.err
		}
		g.mu.Lock()
	}
	g.leading = true
	g.linger()
	batch := g.waiting
	g.waiting = nil
	g.mu.Unlock()

	g.flush(batch)
	for _, other := range batch {
		if other != w {
			close(other.done)
		}
	}

	g.mu.Lock()
	defer g.mu.Unlock()
	g.expect = len(batch) + len(g.waiting)
	if len(g.waiting) > 0 {
		g.waiting[0].lead = true
		close(g.waiting[0].done)
	} else {
		g.leading = false
	}
	return w.err
}

// linger waits for others to come. It is called, and returns, with mu held.
func (g *syncGroup) linger() {
	most := min(g.took/2, lingerMost)
	if len(g.waiting) >= g.expect || most <= 0 {
		return
	}
	select { // what an earlier one left
	case <-g.full:
	default:
	}
	g.mu.Unlock()
	t := time.NewTimer(most)
	select {
	case <-g.full:
	case <-t.C:
	}
	t.Stop()
	g.mu.Lock()
}

// flush answers all of a batch.
func (g *syncGroup) flush(batch []*syncWait) {
	began := time.Now()
	g.mu.Lock()
	whole := len(batch) > 1 && g.fd >= 0 && !g.failed && haveSyncfs() && began.After(g.slow) && g.dirty.Load() <= syncfsDirty
	g.mu.Unlock()
	switch {
	case whole:
		// A failed write is reported once to each descriptor that was open, so this
		// one may hear of an upload that is not in the batch yet, or of none of ours.
		// From then on each asks for itself: its own descriptor still knows.
		if err := unix.Syncfs(g.fd); err != nil {
			whole = false
			g.mu.Lock()
			g.failed = true
			g.mu.Unlock()
			flushEach(batch)
		}
	default:
		flushEach(batch)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.took = time.Since(began)
	if whole && g.took > syncfsSlow {
		g.slow = time.Now().Add(syncfsPause)
	}
}

// flushEach has every one flushed by itself, at the same time, which disks and
// journals merge as well as they can.
func flushEach(batch []*syncWait) {
	if len(batch) == 1 {
		batch[0].err = batch[0].flush()
		return
	}
	var wg sync.WaitGroup
	for _, w := range batch {
		wg.Go(func() { w.err = w.flush() })
	}
	wg.Wait()
}

func (w *syncWait) flush() error {
	if w.dir {
		return syncDir(w.fd)
	}
	return syncFile(w.fd)
}

// syncFile brings a file's content, and what is needed to find it, to stable
// storage (fdatasync(2)).
func syncFile(fd int) error { return unix.Fdatasync(fd) }

// syncDir does so for the names in a directory (fsync(2)).
func syncDir(fd int) error {
	err := unix.Fsync(fd)
	if err == unix.EBADF || err == unix.EINVAL {
		return nil // a drop box opened with O_PATH, or a file system without directory sync
	}
	return err
}
