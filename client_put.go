// client_put.go is one file on its way to the box: small ones are read at once and
// sent without waiting for anything, large ones are streamed with their digest
// computed beside, and what was cut off goes on from what the box has of it. The
// engine that calls it is client_transfer.go.

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
	"sync/atomic"
)

// replaySize is how much of standard input is remembered: what the kernels of both
// sides hold of a connection (tcp_wmem and tcp_rmem have 4 and 6 MiB at most) is what
// can be lost with it.
const replaySize = 12 << 20

// A putStream is standard input, or another file that can be read once only.
type putStream struct {
	r     io.Reader
	at    int64     // read so far
	start int64     // where replay begins
	sum   hash.Hash // of what lies before start
	last  []byte    // replay
	ended bool

	piece  *putPiece      // what is read and not taken; nil: nothing
	pieces chan *putPiece // where the next one will come; nil: nobody reads
}

// A putPiece is what one Read of a stream has given.
type putPiece struct {
	buf  *[]byte // of copyBuffers
	rest []byte  // of it, still to be taken
	err  error
}

// errGivenUp ends a read that nobody waits for any more.
var errGivenUp = errors.New("given up")

// read reads the next piece and remembers it. It waits for one until over or done is
// closed: standard input may be silent for hours, and a refusal or a signal is not to
// wait for it. What comes afterwards is the next read's, maybe for another connection.
func (s *putStream) read(p []byte, over, done <-chan struct{}) (int, error) {
	if s.piece == nil {
		if s.pieces == nil {
			s.pieces = make(chan *putPiece, 1)
			go s.fetch()
		}
		select {
		case s.piece = <-s.pieces:
		case <-over:
			return 0, errGivenUp
		case <-done:
			return 0, errGivenUp
		}
		s.pieces = nil
	}
	n := copy(p, s.piece.rest)
	s.piece.rest = s.piece.rest[n:]
	var err error
	if len(s.piece.rest) == 0 {
		err = s.piece.err
		copyBuffers.Put(s.piece.buf)
		s.piece = nil
	}
	s.last = append(s.last, p[:n]...)
	s.at += int64(n)
	if over := len(s.last) - replaySize; over >= replaySize/4 { // now and then, not for each piece
		s.sum.Write(s.last[:over])
		s.start += int64(over)
		s.last = s.last[:copy(s.last, s.last[over:])]
	}
	return n, err
}

// fetch reads one piece.
func (s *putStream) fetch() {
	pieces, bp := s.pieces, copyBuffers.Get().(*[]byte)
	n, err := s.r.Read(*bp)
	pieces <- &putPiece{bp, (*bp)[:n], err}
}

// skip reads on until n bytes are behind it, or there are no more.
func (s *putStream) skip(ctx context.Context, n int64) error {
	bp := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(bp)
	for s.at < n && !s.ended {
		_, err := s.read((*bp)[:min(n-s.at, int64(len(*bp)))], nil, ctx.Done())
		switch {
		case err == io.EOF:
			s.ended = true
		case err == errGivenUp:
			return errInterrupted
		case err != nil:
			return localError(err)
		}
	}
	return nil
}

// upTo is the digest of the first n bytes, as far as they can still be sent from
// there on.
func (s *putStream) upTo(n int64) (hash.Hash, bool) {
	if n < s.start || n > s.at {
		return nil, false
	}
	sum, err := s.sum.(hash.Cloner).Clone()
	if err != nil {
		return nil, false
	}
	sum.Write(s.last[:n-s.start])
	return sum, true
}

// A putting is one put that was begun.
type putting struct {
	w       *worker
	j       *transferJob
	offset  int64       // the box has that much
	prefix  hash.Hash   // of it
	size    int64       // of the file; -1: its end has not been seen
	claimed atomic.Bool // by who decides how it ends

	// The connection's reader looks at these whenever the put ends.
	sent   atomic.Int64           // of the file, now
	total  atomic.Int64           // size
	digest atomic.Pointer[string] // of the whole file; nil: not all of it is sent
}

// put begins the job and sends all its data; how it ends is for the reader.
func (w *worker) put(j *transferJob) {
	p := &putting{w: w, j: j}
	err := p.run()
	if err == nil {
		return
	}
	if w.retriable(j, err) {
		w.e.mu.Lock()
		w.redo = append(w.redo, j)
		w.e.mu.Unlock()
		return
	}
	if p.claimed.Load() && w.c.broken() == nil {
		p.clean()
	}
	j.finish(w.e, jobResult{err: err, size: p.size})
}

// run returns an error if nothing was begun, or what was begun has been aborted.
func (p *putting) run() error {
	j, e := p.j, p.w.e
	if j.local == "-" || j.stream != nil {
		if j.stream == nil {
			j.stream = &putStream{r: e.o.stdin, sum: sha256.New()}
		}
		return p.runStream()
	}
	f, err := localFiles{j.root}.open(j.local, os.O_RDONLY, 0)
	if err != nil {
		return localError(err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		f.Close()
		return localError(err)
	case info.IsDir():
		f.Close()
		return &localFailure{"is a directory; -r sends it with all that is in it", nil}
	case !info.Mode().IsRegular():
		// A pipe, as the shell's <(command) is one.
		j.opened, j.stream = f, &putStream{r: f, sum: sha256.New()}
		return p.runStream()
	}
	defer f.Close()
	p.size = info.Size()
	if j.setTime && j.mtime.IsZero() {
		j.mtime = info.ModTime()
	}
	if j.setMode && j.mode == 0 {
		j.mode = uint32(info.Mode().Perm())
	}
	if j.resume || j.again {
		if done, err := p.agree(f); done || err != nil {
			return err
		}
	}
	if p.offset == 0 && p.size <= smallFile {
		return p.small(f)
	}
	return p.large(f)
}

// request is the put as it is asked for.
func (p *putting) request() remoteRequest {
	j := p.j
	q := remoteRequest{Do: "put", Path: j.remote, Offset: p.offset}
	if j.stream == nil {
		q.Size = &p.size
	}
	if j.setTime && !j.mtime.IsZero() {
		q.MTime = rfc3339(j.mtime)
	}
	if j.setMode {
		q.Mode = modeBits(j.mode)
	}
	return q
}

// agree finds out what the box has of the file already. done: it has all of it.
func (p *putting) agree(f *os.File) (done bool, err error) {
	j := p.j
	a, err := p.w.c.do(remoteRequest{Do: "stat", Path: j.remote})
	switch {
	case refusedFor(err, "not_found"):
		return false, nil
	case err != nil:
		return false, err
	case a.Type != "file":
		return false, nil // put will be told
	}
	there, theirs := a.Size, ""
	if part := a.partial(); part != nil {
		there, theirs = part.Size, part.SHA256
	}
	if there > p.size || there == 0 {
		p.anew(there > 0 && theirs != "")
		return false, nil
	}
	j.show(p.w.e, p.size)
	j.bar.phase("comparing")
	defer j.bar.phase("")
	sum, err := digestUpTo(p.w.e.ctx, f, there, nil)
	if err != nil {
		return false, err
	}
	ours := hexText(sum.Sum(nil))
	complete := theirs == ""
	if complete {
		h, err := p.w.c.do(remoteRequest{Do: "hash", Path: j.remote})
		if err != nil {
			return false, err
		}
		theirs = h.SHA256
	}
	switch {
	case ours != theirs:
		p.anew(!complete)
	case there == p.size && complete:
		note := "already there"
		if j.again {
			note = "" // the answer was lost, not the file
		}
		return true, p.settle(ours, note)
	default:
		p.offset, p.prefix = there, sum
		if !j.again || j.note == "" {
			j.note = "resumed at " + humanBytes(there)
		}
		if there > j.agreed {
			j.agreed = there
			p.w.progressed()
		}
	}
	return false, nil
}

// settle ends a put of what is there, with what else was asked for.
func (p *putting) settle(digest, note string) error {
	j := p.j
	if j.setTime {
		if _, err := p.w.c.do(remoteRequest{Do: "touch", Path: j.remote, MTime: rfc3339(j.mtime)}); err != nil {
			return err
		}
	}
	if j.setMode {
		if _, err := p.w.c.do(remoteRequest{Do: "chmod", Path: j.remote, Mode: modeBits(j.mode)}); err != nil {
			return err
		}
	}
	j.finish(p.w.e, jobResult{size: p.size, sha256: digest, note: note})
	return nil
}

// anew takes note that what is there is of no use.
func (p *putting) anew(say bool) {
	if say {
		p.j.note = "it has changed, so it was sent anew"
	}
}

// small sends a file that is read at once, with the frames of its request.
func (p *putting) small(f *os.File) error {
	e := p.w.e
	bp := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(bp)
	n, err := io.ReadFull(f, (*bp)[:p.size])
	switch {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		p.size = int64(n) // it is shorter now, and may be so
	case err != nil:
		return localError(err)
	}
	data := (*bp)[:n]
	sum := sha256.Sum256(data)
	digest := hexText(sum[:])
	p.digest.Store(&digest)
	p.total.Store(p.size)
	p.sent.Store(p.size)
	if err := e.allowAll(n); err != nil {
		return err
	}
	c := p.w.c
	c.turn.Lock()
	defer c.turn.Unlock()
	if _, err := c.beginTurn(p.request(), remoteHandlers{final: p.final}); err != nil {
		return err
	}
	p.w.began()
	if n > 0 {
		c.send(frameData, data)
	}
	c.send(frameEnd, encodeJSON(endFrame{Size: &p.size, SHA256: digest}))
	return nil
}

// large streams a file, once the box has said that it may come.
func (p *putting) large(f *os.File) error {
	j := p.j
	j.show(p.w.e, p.size)
	if p.offset > 0 {
		j.bar.at(p.offset)
	}
	sum := p.follower(f)
	defer sum.stop()
	at := p.offset
	return p.send(sum, func(b []byte, _ *remoteCall) (int, error) {
		n, err := f.ReadAt(b[:min(int64(len(b)), p.size-at)], at)
		at += int64(n)
		switch {
		case at == p.size:
			err = io.EOF
		case err == io.EOF:
			err = anewError{newError("it became shorter while it was read; send it again")}
		case err != nil:
			err = localError(err)
		}
		return n, err
	})
}

// follower computes the digest of the whole file, also where only its end is sent.
func (p *putting) follower(f *os.File) *follower {
	w := newFollower(f, p.offset, noGuard)
	if p.prefix != nil {
		w.sum = p.prefix
	}
	return w
}

// runStream sends what can be read once, from where the box lost it.
func (p *putting) runStream() error {
	j, e, s := p.j, p.w.e, p.j.stream
	p.size = -1
	j.show(e, -1)
	var again []byte // what has to be sent once more
	if j.again || j.resume || s.at > 0 {
		there := int64(0)
		a, err := p.w.c.do(remoteRequest{Do: "stat", Path: j.remote})
		if err != nil && !refusedFor(err, "not_found") {
			return err
		}
		theirs := ""
		if err == nil {
			if part := a.partial(); part != nil {
				there, theirs = part.Size, part.SHA256
			} else if s.ended && a.Type == "file" && a.Size == s.at {
				if done, err := p.arrived(s); done || err != nil {
					return err
				}
			}
		}
		if err := s.skip(e.ctx, there); err != nil { // of an earlier process
			return err
		}
		sum, ok := s.upTo(there)
		if ok && there > 0 && hexText(sum.Sum(nil)) != theirs {
			there, ok = 0, s.start == 0
		}
		if !ok {
			return errorf("the connection was lost, and what was read of standard input cannot be read again; put it again")
		}
		if p.offset = there; there > 0 {
			j.note = "resumed at " + humanBytes(there)
		}
		if there > j.agreed {
			j.agreed = there
			p.w.progressed()
		}
		again = bytes.Clone(s.last[there-s.start:])
		j.bar.at(there)
	}
	if p.offset > 0 {
		p.prefix, _ = s.upTo(p.offset)
	}
	sum := p.follower(nil)
	defer sum.stop()
	return p.send(sum, func(b []byte, k *remoteCall) (int, error) {
		if len(again) > 0 {
			n := copy(b, again)
			again = again[n:]
			return n, nil
		}
		if s.ended {
			return 0, io.EOF
		}
		n, err := s.read(b, k.done, e.ctx.Done())
		switch {
		case err == io.EOF:
			s.ended = true
		case err == errGivenUp && e.ctx.Err() != nil:
			err = errInterrupted
		case err != nil && err != errGivenUp:
			err = localError(err)
		}
		return n, err
	})
}

// arrived tells whether the file on the box is all of s: then it was the answer that
// got lost.
func (p *putting) arrived(s *putStream) (done bool, err error) {
	sum, ok := s.upTo(s.at)
	if !ok {
		return false, nil
	}
	a, err := p.w.c.do(remoteRequest{Do: "hash", Path: p.j.remote})
	if err != nil {
		return false, err
	}
	ours := hexText(sum.Sum(nil))
	if a.SHA256 != ours {
		return false, nil
	}
	p.size = s.at
	return true, p.settle(ours, "")
}

// send asks for the put, and sends what read gives until io.EOF. Each buffer goes to
// sum when it is sent.
func (p *putting) send(sum *follower, read func(b []byte, k *remoteCall) (int, error)) error {
	c, j, e := p.w.c, p.j, p.w.e
	opened := make(chan struct{}, 1)
	c.turn.Lock()
	defer c.turn.Unlock()
	k, err := c.beginTurn(p.request(), remoteHandlers{final: p.final, opened: func(*remoteAnswer) error {
		opened <- struct{}{}
		return nil
	}})
	if err != nil {
		return err
	}
	p.w.began()
	c.flush()
	select {
	case <-opened:
	case <-k.done:
		return nil
	}
	at := p.offset
	p.total.Store(p.size)
	for err == nil {
		bp := copyBuffers.Get().(*[]byte)
		room := (*bp)[frameHeader:]
		if e.limiter != nil {
			room = room[:e.chunk]
		}
		var n int
		n, err = read(room, k)
		if n == 0 {
			copyBuffers.Put(bp)
			continue
		}
		if lerr := e.allow(n); lerr != nil {
			copyBuffers.Put(bp)
			err = lerr
			break
		}
		appendHeader((*bp)[:0], frameData, n)
		if werr := c.write((*bp)[:frameHeader+n], n < len(*bp)/2 || j.stream != nil); werr != nil {
			copyBuffers.Put(bp)
			return nil // the reader ends it
		}
		sum.give(hashBlock{buf: bp, skip: frameHeader, n: n, at: at})
		at += int64(n)
		p.sent.Add(int64(n))
		j.bar.add(n)
		select {
		case <-k.done:
			return nil
		default:
		}
	}
	if err == errGivenUp {
		return nil // the reader has ended it
	}
	if err != io.EOF {
		return p.abort(k, err)
	}
	if p.size < 0 {
		p.size = at
	}
	j.bar.phase("verifying")
	whole, err := sum.finish(at)
	if err != nil {
		return p.abort(k, err)
	}
	digest := hexText(whole)
	p.total.Store(p.size)
	p.digest.Store(&digest)
	c.send(frameEnd, encodeJSON(endFrame{Size: &at, SHA256: digest}))
	c.flush()
	return nil
}

// abort ends a put whose data cannot be had to the end. The F is one that nothing can
// agree with, so that what came is an interrupted upload; X would end what other
// requests have on their way, too.
func (p *putting) abort(k *remoteCall, err error) error {
	if !p.claimed.CompareAndSwap(false, true) {
		return nil // refused meanwhile
	}
	impossible := int64(1) << 62
	p.w.c.send(frameEnd, encodeJSON(endFrame{Size: &impossible}))
	p.w.c.flush()
	<-k.done
	return err
}

// clean takes away what a put that will not be gone on with has left under its name.
// Of a file that was there before it is aside, and goes by itself.
func (p *putting) clean() {
	none, half := int64(0), false
	_, err := p.w.c.ask(remoteRequest{Do: "get", Path: p.j.remote, Size: &none, SHA256: noDigest}, remoteHandlers{opened: func(a *remoteAnswer) error {
		half = string(a.Partial) == "true"
		return nil
	}})
	if err == nil && half {
		p.w.c.do(remoteRequest{Do: "remove", Path: p.j.remote})
	}
}

// final is the put's last answer.
func (p *putting) final(_ *remoteCall, a *remoteAnswer, err error) {
	j, w := p.j, p.w
	if !p.claimed.CompareAndSwap(false, true) {
		w.ended(nil, false) // abort goes on with it
		return
	}
	if refusedFor(err, "digest_mismatch") {
		err = anewError{errorf("what arrived at the box is not what was sent (%w); nothing of it was kept", errMismatch)}
	}
	if refusedFor(err, "offset") && j.again {
		err = anewError{err}
	}
	switch digest := p.digest.Load(); {
	case err != nil:
	case digest == nil:
		err = &connError{text: w.c.host + " says that it has all of the file before all of it was sent"}
		w.c.fail(err)
	case a.SHA256 != "" && a.SHA256 != *digest:
		err = errorf("the box tells another digest than was sent (%w)", errMismatch)
	}
	if err != nil && w.retriable(j, err) {
		w.ended(j, true)
		return
	}
	r := jobResult{err: err, bytes: p.sent.Load(), size: p.total.Load()}
	if a != nil {
		r.sha256 = a.SHA256
	}
	j.finish(w.e, r)
	w.ended(j, false)
}
