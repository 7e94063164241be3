// follow.go computes the digest of a file while it is on its way, beside the
// goroutine that moves it. It is apart from requests_transfer.go, which uses it,
// because it is the one place here where two goroutines share a file and buffers,
// and knows neither frames nor sessions.
//
// What the digest costs: SHA-256 runs at some 1.5 GB/s on one processor of a
// server and a third of that on a small box, slower than sendfile(2) or splice(2)
// move the same bytes. So it never stands in their way. A follower hashes beside
// them, from the page cache, on another processor; a file whose digest is known
// already, because it came by put or was asked for before, is not hashed again and
// leaves at sendfile's rate. docs/performance.md has the figures.

package main

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
	"sync"
)

const (
	// followStep is how far a follower is left behind before it is woken: each time
	// costs two switches.
	followStep = 1 << 20
	// maxBlocks is how many buffers wait to be hashed: one that is, and one to follow.
	maxBlocks = 2
)

// A follower computes the SHA-256 of a file that is being written or sent, a
// little behind: from the buffers that the transfer has used, or where the bytes
// came by none, from the page cache. Its methods belong to the goroutine that runs
// the transfer.
type follower struct {
	file  *os.File
	sum   hash.Hash
	tail  hash.Hash // of what lies from start on; nil: nobody asks
	start int64
	done  int64 // hashed up to here; the goroutine's own while there is one
	told  int64 // what follow has made known
	guard func(end func())

	mu      mutex
	changed sync.Cond
	target  int64
	blocks  []hashBlock
	ended   bool
	running chan struct{} // closed when the goroutine has ended; nil: there is none
	err     error         // once it has
}

// hashBlock is a buffer of copyBuffers whose bytes from skip on the file has at at.
type hashBlock struct {
	buf  *[]byte
	skip int
	n    int
	at   int64
}

func newFollower(f *os.File, from int64, guard func(end func())) *follower {
	w := &follower{file: f, guard: guard, sum: sha256.New(), done: from, told: from}
	w.changed.L = &w.mu
	return w
}

// splitAt also computes the digest of what lies from start on.
func (w *follower) splitAt(start int64) { w.start, w.tail = start, sha256.New() }

// add hashes p, which is what comes next, at once; there must be no goroutine yet.
func (w *follower) add(p []byte) {
	w.sum.Write(p)
	if skip := w.start - w.done; w.tail != nil && skip < int64(len(p)) {
		w.tail.Write(p[max(skip, 0):])
	}
	w.done += int64(len(p))
}

// follow says that the file has size bytes, and has a goroutine read what nobody
// gives it.
func (w *follower) follow(size int64) {
	if w.running != nil && size < w.told+followStep {
		return
	}
	w.told = size
	w.mu.Lock()
	w.target = max(w.target, size)
	w.mu.Unlock()
	w.changed.Broadcast()
	w.run()
}

// give hands over a buffer when the transfer is done with it; it goes back to
// copyBuffers when it is hashed.
func (w *follower) give(b hashBlock) {
	w.run()
	w.mu.Lock()
	for len(w.blocks) >= maxBlocks && !w.ended {
		w.changed.Wait()
	}
	w.blocks = append(w.blocks, b)
	w.target = max(w.target, b.at+int64(b.n))
	w.told = w.target
	w.mu.Unlock()
	w.changed.Broadcast()
}

func (w *follower) run() {
	if w.running == nil {
		w.running = make(chan struct{})
		go w.loop()
	}
}

func (w *follower) loop() {
	defer close(w.running)
	defer w.guard(func() {
		w.err = errors.New("panic while hashing")
		w.mu.Lock()
		w.ended = true // nobody waits for room any more
		w.mu.Unlock()
		w.changed.Broadcast()
	})
	for {
		w.mu.Lock()
		for w.target <= w.done && !w.ended && len(w.blocks) == 0 {
			w.changed.Wait()
		}
		target, ended := w.target, w.ended
		var block hashBlock
		if len(w.blocks) > 0 {
			if block = w.blocks[0]; block.at <= w.done {
				w.blocks = append(w.blocks[:0], w.blocks[1:]...)
			} else {
				target, block.buf = block.at, nil // what lies before it comes first
			}
		}
		w.mu.Unlock()
		w.changed.Broadcast()
		switch {
		case block.buf != nil:
			if w.err == nil {
				w.add((*block.buf)[block.skip:][:block.n])
			}
			copyBuffers.Put(block.buf)
		case ended && (target <= w.done || w.err != nil):
			return
		case w.err == nil:
			w.err = w.read(target)
		default: // nothing is hashed any more, but buffers are taken
			w.done = target
		}
	}
}

// read hashes the next piece of the file up to target.
func (w *follower) read(target int64) error {
	bp := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(bp)
	n, err := w.file.ReadAt((*bp)[:min(target-w.done, copyBuffer)], w.done)
	w.add((*bp)[:n])
	if err == io.EOF {
		err = nil
		if w.done < target {
			err = errChanged
		}
	}
	return err
}

// finish waits until size bytes are hashed.
func (w *follower) finish(size int64) ([]byte, error) {
	if w.running == nil && w.done != size {
		w.follow(size)
	}
	w.end(size)
	if w.err != nil {
		return nil, w.err
	}
	return w.sum.Sum(nil), nil
}

// stop ends it early; it may be called after finish.
func (w *follower) stop() { w.end(0) }

func (w *follower) end(size int64) {
	if w.running == nil {
		return
	}
	w.mu.Lock()
	w.target, w.ended = size, true
	w.mu.Unlock()
	w.changed.Broadcast()
	<-w.running
}
