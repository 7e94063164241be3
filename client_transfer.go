// client_transfer.go is the engine of get, put and sync: it takes jobs of one file
// each and moves them over one or more connections, many on their way at once, and
// makes lost connections again. What one file takes in each direction is in
// client_put.go and client_get.go. It knows no command line and walks no tree.
//
// Data flow: add → queue → a worker, which owns a connection. The worker begins
// requests one behind the other without waiting for answers, and writes a put's data
// itself; the connection's reader takes a get's data and all answers, and ends jobs.
// A job that ends with a lost connection goes back to the front of the queue, and is
// resumed from what both sides have.

package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

const (
	// maxFlight is how many small files are on their way on one connection: with 4 KiB
	// each that fills a line of 80 Mbit/s with 100 ms to the other side and back.
	maxFlight = 256
	// engineQueue is how many jobs wait for a worker.
	engineQueue = 512
	// smallFile is the largest file that is read at once, sent without asking whether
	// it may be, and never resumed.
	smallFile = 256 << 10
	// maxTries is how often one file begins anew because it changed on the way or
	// arrived damaged.
	maxTries = 3
	// What lies between two tries to connect again: it doubles, and is spread so that
	// a hundred cameras do not come back at once.
	firstPause = 250 * time.Millisecond
	lastPause  = 15 * time.Second
	// defaultRetry is how long a connection is tried to be made again.
	defaultRetry = 5 * time.Minute
	// limitChunk is how much of a file moves at least at once under --limit-rate, and
	// limitSteps how many such steps a second has at most: smooth at any rate, and no
	// timer's resolution slows a fast one down.
	limitChunk = 16 << 10
	limitSteps = 100
)

// A transferJob is one file on its way in one direction.
type transferJob struct {
	put     bool
	local   string   // path here; "-" is standard input or output
	root    *os.Root // local is below it, if not nil
	remote  string
	size    int64 // as far as it is known; -1: it is not
	mtime   time.Time
	mode    uint32
	setMode bool // get: of the file on the box; put: mode
	setTime bool // get: of the file on the box; put: mtime
	resume  bool // from what is there of it
	name    string
	action  string            // of JSON lines and summaries; empty: the verb
	done    func(r jobResult) // nil: nobody asks. Called once, from any goroutine

	tries  int
	again  bool       // the connection was lost under it
	busy   error      // the box said so: some time has to pass first
	stream *putStream // what standard input has given so far
	sink   *getStream // what standard output has got so far
	opened *os.File   // a pipe or a device that one of them reads or writes
	bar    *progressFile
	agreed int64 // how much both sides have had for certain
	note   string
}

// A jobResult is how a job ended.
type jobResult struct {
	err    error
	bytes  int64 // that were moved now
	size   int64 // of the file
	sha256 string
	note   string
}

// engineOptions is what all jobs of an engine have in common.
type engineOptions struct {
	verb   string
	jobs   int
	rate   int64         // bytes a second; 0: no limit
	retry  time.Duration // 0: a lost connection is lost
	pause  time.Duration // before the first try to connect again; 0: firstPause
	stdin  io.Reader
	stdout io.Writer
}

// An engine moves files.
type engine struct {
	o       engineOptions
	ctx     context.Context
	connect func() (*remote, error) // the first call may return a connection that is there
	release func(c *remote)         // a worker has no more use for it; nil: nobody asks
	prog    *progress
	limiter *rate.Limiter
	chunk   int // that moves at once under it
	workers sync.WaitGroup

	mu      mutex
	changed sync.Cond
	queue   []*transferJob
	full    bool  // no more jobs will come
	running int   // workers
	dialing int   // of those, with a job and without a connection: the others stay for it
	gone    error // why the last of those that had to go could not go on
	fatal   error
	left    int // jobs that were given up with fatal
	failed  int
	worst   error
}

func newEngine(ctx context.Context, o engineOptions, connect func() (*remote, error), prog *progress) *engine {
	e := &engine{o: o, ctx: ctx, connect: connect, prog: prog}
	e.changed.L = &e.mu
	if o.rate > 0 {
		e.chunk = int(min(max(o.rate/limitSteps, min(limitChunk, o.rate)), copyBuffer-frameHeader))
		e.limiter = rate.NewLimiter(rate.Limit(o.rate), max(2*e.chunk, int(min(o.rate/10, 64<<20))))
		e.limiter.AllowN(time.Now(), e.limiter.Burst()) // nothing was saved up before
	}
	e.o.jobs = max(e.o.jobs, 1)
	return e
}

// add queues a job. It waits while the queue is full, so it must not be called by
// the reader of a connection that the engine uses.
func (e *engine) add(j *transferJob) {
	e.mu.Lock()
	for len(e.queue) >= engineQueue && e.fatal == nil {
		e.changed.Wait()
	}
	if e.fatal != nil {
		e.left++
		e.mu.Unlock()
		j.finish(e, jobResult{err: e.fatal})
		return
	}
	e.queue = append(e.queue, j)
	// One more worker for each job that found the others busy.
	start := e.running < e.o.jobs && (e.running == 0 || len(e.queue) > 1)
	if start {
		e.running++
		e.workers.Add(1)
	}
	e.mu.Unlock()
	e.changed.Broadcast()
	if start {
		go (&worker{e: e}).run()
	}
}

// close waits until all jobs have ended. It returns nil, or the error that decides
// the exit code: what each file ended with was said already.
func (e *engine) close() error {
	e.mu.Lock()
	e.full = true
	e.mu.Unlock()
	e.changed.Broadcast()
	e.workers.Wait()
	switch {
	case e.fatal != nil && errors.Is(e.fatal, errInterrupted):
		return errInterrupted
	case e.fatal != nil:
		return e.fatal
	case e.worst != nil:
		return exitWith(exitCode(e.worst))
	}
	return nil
}

// giveUp ends everything that waits.
func (e *engine) giveUp(err error) {
	e.mu.Lock()
	if e.fatal == nil {
		e.fatal = err
	}
	queue := e.queue
	e.queue = nil
	e.left += len(queue)
	e.mu.Unlock()
	e.changed.Broadcast()
	for _, j := range queue {
		j.finish(e, jobResult{err: err})
	}
}

// allow waits until n bytes, chunk at most, may move.
func (e *engine) allow(n int) error {
	if e.limiter == nil {
		return nil
	}
	if err := e.limiter.WaitN(e.ctx, n); err != nil {
		return errInterrupted
	}
	return nil
}

// allowAll is allow for any n.
func (e *engine) allowAll(n int) error {
	for ; e.limiter != nil && n > e.chunk; n -= e.chunk {
		if err := e.allow(e.chunk); err != nil {
			return err
		}
	}
	return e.allow(n)
}

// --- jobs ---

// show gives the job a line of its own, once it is what moves.
//
//go:noinline
func (j *transferJob) show(e *engine, size int64) {
	if j.bar == nil {
		j.bar = e.prog.begin(j.name, size)
	}
}

// finish ends the job.
func (j *transferJob) finish(e *engine, r jobResult) {
	if r.note == "" {
		r.note = j.note
	}
	if j.opened != nil {
		j.opened.Close()
	}
	e.mu.Lock()
	// That nothing goes on any more is said once, and not for each file.
	own := r.err != nil && (e.fatal == nil || !errors.Is(r.err, e.fatal))
	if r.err != nil {
		e.failed++
		if e.worst == nil || exitCode(r.err) > exitCode(e.worst) {
			e.worst = r.err
		}
	}
	e.mu.Unlock()
	if own && !errors.Is(r.err, errInterrupted) {
		e.prog.warn("berth %s: %s: %v", e.o.verb, shownText(j.name), r.err)
	}
	if r.err == nil || j.bar != nil || e.prog.json && own {
		j.show(e, r.size)
		local := j.local
		if j.root != nil {
			local = filepath.Join(j.root.Name(), local)
		}
		from, to := local, j.remote
		if !j.put {
			from, to = to, from
		}
		j.bar.done(progressResult{err: r.err, note: r.note, bytes: r.bytes, size: r.size, sha256: r.sha256, from: from, to: to, action: j.action})
	}
	if j.done != nil {
		j.done(r)
	}
}

// --- workers ---

// A worker moves jobs over a connection of its own.
type worker struct {
	e *engine
	c *remote

	// Guarded by e.mu.
	flight  int            // requests without final answer
	dialing bool           // counted in e.dialing
	redo    []*transferJob // in the order in which they were begun
	cancel  bool           // what runs is of no use any more
	// trouble is when the connection was lost, zero again once something has moved
	// since: so long does the time to try again not begin anew.
	trouble time.Time
	pauses  int // since then
}

func (w *worker) run() {
	e := w.e
	defer e.workers.Done()
	err := w.work()
	if w.c != nil && e.release != nil {
		e.release(w.c)
	}
	e.mu.Lock()
	e.running--
	last := e.running == 0
	// Without this worker the others go on with what it had.
	e.queue = append(w.redo, e.queue...)
	if w.dialing {
		e.dialing--
	}
	if err != nil {
		e.gone = err
	}
	if last && len(e.queue) > 0 && err == nil {
		err = e.gone
	}
	e.mu.Unlock()
	if err != nil && (last || errors.Is(err, errInterrupted)) {
		e.giveUp(err)
	}
	e.changed.Broadcast()
}

// work returns nil when there is nothing left to do, else why it cannot go on.
func (w *worker) work() error {
	e := w.e
	for unsent := 0; ; {
		j, done, err := w.next(&unsent)
		switch {
		case err != nil:
			return err
		case done:
			return nil
		case w.c == nil || w.c.broken() != nil:
			err := w.dial()
			e.mu.Lock()
			if err != nil { // run takes it off the count, together with the job
				w.redo = append(w.redo, j)
				e.mu.Unlock()
				return err
			}
			if w.dialing {
				e.dialing--
				w.dialing = false
			}
			e.mu.Unlock()
			e.changed.Broadcast()
		}
		if busy := j.busy; busy != nil {
			if j.busy = nil; !w.wait() {
				j.finish(e, jobResult{err: busy})
				continue
			}
		}
		unsent++
		if j.put {
			w.put(j)
		} else {
			w.get(j)
		}
	}
}

// next is the next job. It waits for one, for room on the connection, and for what
// a broken connection leaves behind.
func (w *worker) next(unsent *int) (j *transferJob, done bool, err error) {
	e := w.e
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		broken := w.c != nil && w.c.broken() != nil
		switch {
		case e.ctx.Err() != nil && w.flight == 0:
			return nil, false, errInterrupted
		case e.fatal != nil && w.flight == 0:
			return nil, true, nil
		case broken && w.flight > 0: // its reader is about to end them
		case w.cancel && w.flight == 0:
			w.cancel = false
			continue
		case w.cancel:
			w.cancel = false
			e.mu.Unlock()
			w.c.turn.Lock() // in the middle of another's data it would end that
			w.c.send(frameCancel, nil)
			w.c.flush()
			w.c.turn.Unlock()
			e.mu.Lock()
			continue
		case len(w.redo) > 0 && w.flight == 0:
			j, w.redo = w.redo[0], w.redo[1:]
			w.taken(broken)
			return j, false, nil
		case len(w.redo) > 0: // after what is on its way
		case len(e.queue) > 0 && w.flight < maxFlight && e.fatal == nil && e.ctx.Err() == nil:
			j, e.queue[0] = e.queue[0], nil
			if e.queue = e.queue[1:]; len(e.queue) == engineQueue/2 || len(e.queue) == 0 {
				e.changed.Broadcast() // not for each: who adds is behind anyway
			}
			w.taken(broken)
			return j, false, nil
		case len(e.queue) == 0 && e.full && w.flight == 0 && e.dialing == 0:
			return nil, true, nil
		}
		if *unsent > 0 && w.c != nil && !broken {
			*unsent = 0
			e.mu.Unlock()
			w.c.flush()
			e.mu.Lock()
			continue
		}
		e.changed.Wait()
	}
}

// taken takes note of a job that has to wait for a connection; e.mu is held.
func (w *worker) taken(broken bool) {
	if w.c == nil || broken {
		w.dialing = true
		w.e.dialing++
	}
}

// dial makes the first connection, or a lost one again.
func (w *worker) dial() error {
	e := w.e
	if w.c == nil {
		c, err := e.connect()
		if err == nil {
			w.c = c
		}
		return err
	}
	lost := w.c.broken()
	w.c.fail(lost)
	w.c.reader.Wait()
	if errors.Is(lost, errInterrupted) || e.o.retry <= 0 {
		return lost
	}
	e.mu.Lock()
	begins := w.pauses == 0
	e.mu.Unlock()
	if begins {
		e.prog.say("berth %s: %v; trying again, for up to %v", e.o.verb, lost, e.o.retry)
	}
	for err := lost; ; {
		if !w.wait() {
			if e.ctx.Err() != nil {
				return errInterrupted
			}
			return err
		}
		var c *remote
		if c, err = e.connect(); err == nil {
			w.c = c
			if begins {
				e.prog.say("berth %s: connected again", e.o.verb)
			}
			return nil
		}
		var v *verbError
		if !isConnError(err) || errors.As(err, &v) {
			return err
		}
	}
}

// wait lets some time pass before another try; false: that has gone on for too long.
func (w *worker) wait() bool {
	e := w.e
	e.mu.Lock()
	if w.trouble.IsZero() {
		w.trouble, w.pauses = time.Now(), 0
	}
	late := time.Since(w.trouble) > e.o.retry
	pause := min(cmp.Or(e.o.pause, firstPause)<<min(w.pauses, 10), lastPause)
	w.pauses++
	e.mu.Unlock()
	if late {
		return false
	}
	timer := time.NewTimer(pause/2 + time.Duration(rand.Int64N(int64(pause))))
	defer timer.Stop()
	select {
	case <-e.ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// progressed says that the other side has got further than before.
func (w *worker) progressed() {
	w.e.mu.Lock()
	w.trouble, w.pauses = time.Time{}, 0
	w.e.mu.Unlock()
}

// began counts a request that was sent.
func (w *worker) began() {
	w.e.mu.Lock()
	w.flight++
	w.e.mu.Unlock()
}

// ended is for the final answer of a request: retry has its job done again, after
// what is on its way.
func (w *worker) ended(j *transferJob, retry bool) {
	e := w.e
	e.mu.Lock()
	w.flight--
	if retry {
		w.redo = append(w.redo, j)
	} else {
		w.trouble, w.pauses = time.Time{}, 0
	}
	wake := w.flight == 0 || w.flight == maxFlight/2 || retry
	e.mu.Unlock()
	if wake {
		e.changed.Broadcast()
	}
}

// stop has the server stop what it sends to nobody.
func (w *worker) stop() {
	w.e.mu.Lock()
	w.cancel = true
	w.e.mu.Unlock()
	w.e.changed.Broadcast()
}

// retriable decides whether a job that ended with err is worth another try, and
// takes note of it.
func (w *worker) retriable(j *transferJob, err error) bool {
	e := w.e
	var v *verbError
	switch {
	case e.ctx.Err() != nil || errors.Is(err, errInterrupted) || errors.As(err, &v):
		return false
	case isConnError(err):
		j.again = true
		return e.o.retry > 0
	case refusedFor(err, "cancelled"):
		return true // another job's fault
	case refusedFor(err, "busy") && (j.again || j.resume):
		// The box has not noticed yet that the connection was lost, ours or an earlier
		// process's.
		e.mu.Lock()
		first := w.pauses == 0
		e.mu.Unlock()
		if first {
			e.prog.say("berth %s: %s: the box has an upload of it running; waiting for that to end", e.o.verb, shownText(j.name))
		}
		j.busy = err
		return true
	case errors.Is(err, errStartAnew) && j.tries < maxTries-1:
		j.tries++
		return true
	}
	return false
}

// errStartAnew is in errors of a file that has to begin anew.
var errStartAnew = errors.New("begin anew")

// anewError is an error that is worth beginning anew, with what to say if that does
// not help.
type anewError struct{ error }

func (e anewError) Is(target error) bool { return target == errStartAnew }
func (e anewError) Unwrap() error        { return e.error }

// --- files here ---

// localFiles is where a job's file is: below root, or anywhere.
type localFiles struct{ root *os.Root }

func (l localFiles) open(name string, flag int, perm fs.FileMode) (*os.File, error) {
	if l.root != nil {
		return l.root.OpenFile(name, flag|unix.O_LARGEFILE, perm) // which os.Root leaves out: see openAlways
	}
	return os.OpenFile(name, flag, perm)
}

func (l localFiles) stat(name string) (fs.FileInfo, error) {
	if l.root != nil {
		return l.root.Stat(name)
	}
	return os.Stat(name)
}

func (l localFiles) lstat(name string) (fs.FileInfo, error) {
	if l.root != nil {
		return l.root.Lstat(name)
	}
	return os.Lstat(name)
}

func (l localFiles) rename(from, to string) error {
	if l.root != nil {
		return l.root.Rename(from, to)
	}
	return os.Rename(from, to)
}

func (l localFiles) remove(name string) error {
	if l.root != nil {
		return l.root.Remove(name)
	}
	return os.Remove(name)
}

// localError is an error of a file here, in words: the name is said already.
func localError(err error) error {
	var pe *fs.PathError
	var le *os.LinkError
	var errno syscall.Errno
	what := err.Error()
	switch {
	case errors.As(err, &errno):
		what = errno.Error()
	case errors.As(err, &pe):
		what = pe.Err.Error()
	case errors.As(err, &le):
		what = le.Err.Error()
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		what = "the disk here is full; make room, then go on with -c"
	case errors.Is(err, fs.ErrNotExist):
		what = "no such file or directory here"
	case errors.Is(err, fs.ErrPermission):
		what = "permission denied here"
	case errors.Is(err, syscall.EISDIR):
		what = "there is a directory of that name here"
	}
	return &localFailure{what, err}
}

type localFailure struct {
	text string
	err  error
}

func (e *localFailure) Error() string { return e.text }
func (e *localFailure) Unwrap() error { return e.err }

// digestUpTo hashes the first n bytes of f; an error if there are fewer.
func digestUpTo(ctx context.Context, f io.ReaderAt, n int64, moved func(n int)) (hash.Hash, error) {
	bp := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(bp)
	sum := sha256.New()
	for at := int64(0); at < n; {
		if ctx.Err() != nil {
			return nil, errInterrupted
		}
		part := (*bp)[:min(n-at, int64(len(*bp)))]
		m, err := f.ReadAt(part, at)
		sum.Write(part[:m])
		at += int64(m)
		if moved != nil {
			moved(m)
		}
		if err != nil && at < n {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, localError(err)
		}
	}
	return sum, nil
}

// noGuard is for a follower in a program that a panic may end.
func noGuard(func()) {}

// rfc3339 is a time as requests carry it.
func rfc3339(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// modeBits is a mode as requests carry it.
func modeBits(mode uint32) string { return fmt.Sprintf("%04o", mode&0o777) }
