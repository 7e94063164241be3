// requests_transfer.go moves files over frames: put and get. It is apart from
// requests.go as proto_transfer.go is from proto_files.go, because what it has to
// get right is order and cost: data shares its connection with answers, and every
// byte is hashed.

package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// followFrom is from how many bytes on hashing runs beside the transfer: below,
	// a second goroutine costs more than it saves.
	followFrom = 1 << 20
	// wholeFrame is the payload up to which a D frame is waited for, to be written at
	// once.
	wholeFrame = 16 << 10
	// keepFrom is the size from which on a digest is kept with the file: less is hashed
	// anew for the price of keeping it.
	keepFrom = 64 << 10
	// spliceFrom is the payload from which on splice(2) is worth its system calls.
	spliceFrom = 64 << 10
	// slowFrame is the payload under TLS, and on unix sockets, for a client that took
	// slowAfter for the last one: every frame has a timeout, and slow is not stalled.
	slowFrame = 16 << 10
	slowAfter = 5 * time.Second
)

// --- put ---

type putAnswer struct {
	answer
	Offset *int64 `json:"offset,omitempty"`
	Size   *int64 `json:"size,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
	Left   *int64 `json:"left,omitempty"` // bytes of the quota
}

// endFrame is the payload of F. In a put it may tell of the whole file, or of
// what was sent.
type endFrame struct {
	Size   *int64 `json:"size,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

var (
	errDigest = errors.New("the digest does not agree")
	errSize   = errors.New("the size does not agree")
)

// An incoming is one framed put on its way.
type incoming struct {
	s    *session
	x    *transfer
	u    *upload
	sum  *follower // nil: nobody wants the digest
	bare bool      // that was said
	pipe *pipe     // nil until it is worth one
	want []string
	size int64 // of the whole file as the request had it; -1: not told
	over bool  // more came
}

func (s *session) doPut(q *request) error {
	return s.withPath(q, func(p string) error {
		in := &incoming{s: s, size: -1}
		if bad := in.parse(q); bad != "" {
			return s.badField("%s", bad)
		}
		when, mode, err := putMeta(q)
		if err != nil {
			return s.badField("%v.", err)
		}
		if q.Offset > 0 {
			// REST may go back into a partial, as some FTP clients do. Here whoever
			// resumes knows what is there, and another offset is a mistake.
			if f, size, err := s.jail.openPartial(p); err == nil {
				f.Close()
				if size != q.Offset {
					return s.refuseUpload(p, &offsetError{have: size, want: q.Offset})
				}
			}
		}
		kind, offset := uploadStore, q.Offset
		if q.Append {
			kind, offset = uploadAppend, -1
		}
		u, err := s.jail.create(p, kind, offset, s.srv.config().Transfer.Durable)
		if err != nil {
			return s.refuseUpload(p, err)
		}
		defer u.interrupt() // of no effect after commit
		if q.Append && in.size >= 0 {
			if in.size += u.start; in.size < 0 {
				return s.badField("size is more than any file can have.")
			}
		}
		if in.size >= 0 && in.size < u.start {
			return s.badField("size is %d, less than the %d bytes that are there.", in.size, u.start)
		}
		if in.size >= 0 {
			if err := u.announced(in.size); err != nil {
				return s.refuseUpload(p, err)
			}
		}
		s.answer(&putAnswer{answer: answer{Code: codeDataOpening, Text: "Ready to take the file."}, Offset: &u.start})
		counted := s.startTransfer(true)
		defer counted.end("error") // of no effect after settle: only a panic comes to it
		in.u = u
		in.x = s.framedTransfer(true, counted)
		in.x.file = p
		in.x.total.Store(max(in.size-u.start, 0))
		end := s.running(in.x, s.verb+" "+p)
		defer in.release()
		moved := s.elsewhere()
		err = in.receive()
		moved()
		if err == nil && !when.IsZero() {
			err = setFileTime(u.file, when)
		}
		if err == nil && q.Mode != "" {
			err = unix.Fchmod(int(u.file.Fd()), mode&0o777)
		}
		end()
		in.release()
		cause := in.x.explain(err)
		err = s.settle(p, u, in.x, counted, cause)
		var broken *protocolError
		switch {
		case errors.As(cause, &broken):
			return cause
		case errors.Is(cause, errControlGone):
			return cmp.Or(s.eof, io.EOF)
		case errors.Is(cause, errStalled): // in the middle of a frame, maybe
			s.fail(cause)
			return cause
		}
		return in.conclude(err)
	})
}

// release gives back what the transfer alone needs, before the upload ends.
func (in *incoming) release() {
	if in.pipe != nil {
		in.pipe.close()
		in.pipe = nil
	}
	if in.sum != nil {
		in.sum.stop()
	}
}

// parse takes the request's words about the content; bad is what is wrong.
func (in *incoming) parse(q *request) (bad string) {
	if q.Size != nil {
		if in.size = *q.Size; in.size < 0 {
			return "size is not below 0."
		}
	}
	if q.Offset < 0 || q.Append && q.Offset > 0 {
		return "offset is not below 0, and not given with append."
	}
	if q.SHA256 == noDigest {
		in.bare = true
	} else if q.SHA256 != "" {
		if bad := badDigest(q.SHA256); bad != "" {
			return bad + ` Or it is "none", to do without.`
		}
		in.want = append(in.want, strings.ToLower(q.SHA256))
	}
	return ""
}

// noDigest is what sha256 of a request may say instead: the client neither has nor
// wants a digest, and the processor is spared it.
const noDigest = "none"

func badDigest(sum string) string {
	if b, err := hex.DecodeString(sum); err != nil || len(b) != sha256.Size {
		return "sha256 is 64 hexadecimal digits."
	}
	return ""
}

// putMeta is the time and the mode that the file is to have; zero for none.
func putMeta(q *request) (when time.Time, mode uint32, err error) {
	if q.MTime != "" {
		if when, err = parseMTime(q.MTime); err != nil {
			return when, 0, err
		}
	}
	if q.Mode != "" {
		mode, err = parseMode(q.Mode)
	}
	return when, mode, err
}

func setFileTime(f *os.File, when time.Time) error {
	ts, err := unix.TimeToTimespec(when)
	if err != nil {
		return err
	}
	return utimens(f, ts)
}

// receive takes frames until F, into the staging file and the digest.
func (in *incoming) receive() error {
	s := in.s
	if err := in.u.copyPrefix(in.x.cancelled); err != nil {
		return err
	}
	if !in.bare {
		in.digest()
	}
	for {
		t, err := in.next()
		if err != nil {
			return err
		}
		switch t {
		case frameData:
			if err := in.data(); err != nil {
				return err
			}
		case frameEnd:
			return in.end()
		case frameCancel:
			if err := in.skip(); err != nil {
				return err
			}
			return errAborted
		case framePing:
			payload, err := in.whole()
			if err != nil {
				return err
			}
			if s.echoPing(payload) != nil {
				return errControlGone
			}
		case frameRequest, frameSignal, frameWindow:
			return misplaced(t)
		default:
			return unknownFrame(t)
		}
	}
}

// digest begins to compute it, of what is there already and what comes.
func (in *incoming) digest() {
	in.sum = newFollower(in.u.file, 0, in.s.guard)
	if in.u.start > 0 {
		in.sum.splitAt(in.u.start)
		in.sum.follow(in.u.start)
	}
}

// next opens the next frame.
func (in *incoming) next() (frameType, error) {
	for {
		ok, err := in.s.fr.in.next()
		if err != nil {
			return 0, tooLongFrame(in.s.fr.in.left)
		}
		if ok {
			return in.s.fr.in.kind, nil
		}
		if err := in.read(in.pipe != nil); err != nil {
			return 0, err
		}
	}
}

// read waits for more. headerOnly leaves the payload behind it in the socket, for
// splice.
func (in *incoming) read(headerOnly bool) error {
	s := in.s
	if s.eof != nil {
		return errControlGone
	}
	s.flush()
	if err := in.x.extend(); err != nil {
		return err
	}
	space := s.fr.in.space()
	if headerOnly {
		space = space[:frameHeader-min(s.fr.in.w-s.fr.in.r, frameHeader-1)]
	}
	n, err := s.conn.Read(space)
	if n > 0 {
		s.fr.in.got(n)
		return nil
	}
	return in.broken(err)
}

// broken is the error of a read.
//
//go:noinline
func (in *incoming) broken(err error) error {
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return err // explain knows more
	}
	in.s.eof = err
	return errControlGone
}

// data takes the payload of one D frame.
func (in *incoming) data() error {
	f := in.s.fr.in
	if f.left <= wholeFrame {
		p, err := in.whole()
		if err != nil {
			return err
		}
		return in.write(p)
	}
	for f.left > 0 {
		if p := f.take(copyBuffer); len(p) > 0 {
			if err := in.write(p); err != nil {
				return err
			}
			continue
		}
		if f.left >= spliceFrom {
			if ok, err := in.splice(); ok || err != nil {
				if err != nil {
					return err
				}
				continue
			}
		}
		if err := in.copy(); err != nil {
			return err
		}
	}
	return nil
}

// write puts p behind what was written, and has it hashed.
func (in *incoming) write(p []byte) error {
	at := in.u.size
	if err := in.store(p); err != nil {
		return err
	}
	if in.sum == nil {
		return nil
	}
	if in.sum.running == nil && at == in.sum.done && max(in.size, in.u.size) < followFrom {
		in.sum.add(p)
	} else {
		in.sum.follow(in.u.size)
	}
	return nil
}

// store puts p behind what was written.
func (in *incoming) store(p []byte) error {
	if err := in.tooMuch(len(p)); err != nil {
		return err
	}
	for len(p) > 0 {
		n, err := in.u.Write(p[:in.x.chunk(int64(len(p)))])
		in.x.progress(int64(n))
		if err != nil {
			return err
		}
		if err := in.x.allow(int64(n)); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// tooMuch ends an upload that passes the size it was announced with, before its
// bytes cost anything.
func (in *incoming) tooMuch(n int) error {
	if in.size >= 0 && in.u.size+int64(n) > in.size {
		in.over = true
		return errSize
	}
	return nil
}

// copy takes payload by way of a buffer: as much as comes in one go.
func (in *incoming) copy() error {
	f := in.s.fr.in
	bp := copyBuffers.Get().(*[]byte)
	given := false
	defer func() {
		if !given {
			copyBuffers.Put(bp)
		}
	}()
	buf := (*bp)[:min(int64(f.left), in.x.chunk(copyBuffer))]
	n := 0
	var err error
	defer in.x.filling(false)
	for n < len(buf) && err == nil {
		if err = in.x.extendFor(in.x.patience()); err != nil {
			break
		}
		var m int
		m, err = in.s.conn.Read(buf[n:])
		n += m
		in.x.filling(n > 0)
		if n > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil // slow; what came is written first
			break
		}
	}
	f.passed(n)
	at := in.u.size
	if werr := in.store(buf[:n]); werr != nil {
		return werr
	}
	switch {
	case n == 0 || in.sum == nil:
	case in.sum.running != nil || max(in.size, in.u.size) >= followFrom:
		in.sum.give(hashBlock{buf: bp, n: n, at: at})
		given = true
	default:
		in.sum.add(buf[:n])
	}
	return in.broken(err)
}

// splice moves the rest of the payload inside the kernel; false where that cannot
// be.
func (in *incoming) splice() (bool, error) {
	tcp, ok := in.s.conn.(*net.TCPConn)
	if !ok {
		return false, nil
	}
	f := in.s.fr.in
	if err := in.tooMuch(f.left); err != nil {
		return false, err
	}
	if in.pipe == nil {
		if in.pipe = openPipe(&in.s.srv.splices); in.pipe == nil {
			return false, nil
		}
	}
	for f.left > 0 {
		n, err := in.pipe.take(in.x, tcp, f.left)
		if err != nil {
			return true, in.broken(err)
		}
		if n == 0 {
			return true, in.broken(io.EOF)
		}
		f.passed(n)
		before := in.u.size
		err = in.u.drain(in.pipe.r, n)
		in.x.progress(in.u.size - before)
		if err != nil {
			return true, err
		}
		if in.sum != nil {
			in.sum.follow(in.u.size)
		}
		if err := in.x.allow(int64(n)); err != nil {
			return true, err
		}
	}
	return true, nil
}

// skip reads over a payload that means nothing.
func (in *incoming) skip() error {
	for in.s.fr.in.left > 0 {
		if len(in.s.fr.in.take(maxFrame)) == 0 {
			if err := in.read(false); err != nil {
				return err
			}
		}
	}
	return nil
}

// whole is the open frame's payload, waited for.
func (in *incoming) whole() ([]byte, error) {
	for {
		if p, ok := in.s.fr.in.whole(); ok {
			return p, nil
		}
		if err := in.read(false); err != nil {
			return nil, err
		}
	}
}

// end reads F and tells whether all that was promised has come.
func (in *incoming) end() error {
	f := in.s.fr.in
	if f.left > maxStranger {
		return &protocolError{codeBadArgument, "bad_frame", fmt.Sprintf("A frame of type F with %d bytes: at most %d make sense.", f.left, maxStranger)}
	}
	payload, err := in.whole()
	if err != nil {
		return err
	}
	var e endFrame
	if len(bytes.TrimSpace(payload)) > 0 {
		if err := json.Unmarshal(payload, &e); err != nil {
			return &protocolError{codeBadArgument, "bad_json", `A frame of type F is {"size": N, "sha256": "hex"}.`}
		}
	}
	if e.SHA256 != "" && badDigest(e.SHA256) != "" {
		return &protocolError{codeBadArgument, "bad_json", "In the frame of type F: " + badDigest(e.SHA256)}
	}
	u := in.u
	if in.size >= 0 && u.size != in.size || e.Size != nil && *e.Size != u.size && *e.Size != u.size-u.start {
		return errSize
	}
	if in.sum == nil {
		if e.SHA256 == "" {
			return nil
		}
		in.digest() // he has one after all
	}
	sum, err := in.sum.finish(u.size)
	if err != nil {
		return err
	}
	whole, tail := hexText(sum), ""
	if in.sum.tail != nil {
		tail = hexText(in.sum.tail.Sum(nil))
	}
	if e.SHA256 != "" {
		in.want = append(in.want, strings.ToLower(e.SHA256))
	}
	for _, want := range in.want {
		if want != whole && want != tail {
			// What came is not what was sent: nothing of it may be built upon.
			u.sum = nil
			return errDigest
		}
	}
	u.sum, u.light = sum, u.size < keepFrom
	return nil
}

// conclude answers the put.
func (in *incoming) conclude(err error) error {
	s, u := in.s, in.u
	switch {
	case errors.Is(err, errSize) && in.over:
		s.answer(&failure{answer: answer{Code: codeAborted, Reason: "size_mismatch", Text: fmt.Sprintf("More came than the %d bytes that were announced; stat tells what is kept.", in.size)}, Have: &u.size})
		return nil
	case errors.Is(err, errSize):
		s.answer(&failure{answer: answer{Code: codeAborted, Reason: "size_mismatch", Text: fmt.Sprintf("%d bytes arrived, which is not the size that was announced; stat tells what is kept.", u.size)}, Have: &u.size})
		return nil
	case errors.Is(err, errDigest):
		s.answer(&answer{Code: codeLocalError, Reason: "digest_mismatch", Text: "The SHA-256 of what arrived is not the one that was sent; nothing was changed and nothing of it kept. Send it again."})
		return nil
	case err != nil:
		return s.fail(err)
	}
	a := &putAnswer{answer: answer{Code: codeDataClosed, Text: "Complete."}, Size: &u.size}
	if u.sum != nil {
		a.SHA256 = hexText(u.sum)
	}
	if left, limited := s.jail.left(); limited {
		a.Left = &left
	}
	s.answer(a)
	return nil
}

// --- a transfer on the control connection ---

// framedTransfer is a transfer whose bytes travel as frames. Cancelling it does
// not unblock anything: the frame that is on its way has to be finished, or nobody
// could find the next one.
func (s *session) framedTransfer(upload bool, counted *countedTransfer) *transfer {
	x := newTransfer(s.srv.config().Limits.DataTimeout.std(), s.limiterFor(upload))
	x.attended = upload
	x.conn = s.conn
	if s.peer.IsValid() {
		x.sock = s.bare
	}
	set := s.conn.SetWriteDeadline
	if upload {
		set = s.conn.SetReadDeadline
	}
	x.unblock = func(t time.Time) error {
		if t.Before(x.started) {
			return nil
		}
		return set(t)
	}
	x.count = counted.add
	return x
}

// running shows x as what the session does, and lets it be ended, for a request
// that reads its connection itself.
func (s *session) running(x *transfer, about string) (end func()) {
	s.mu.Lock()
	s.xfer, s.about = x, about
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		s.xfer = nil
		s.mu.Unlock()
	}
}

// --- get ---

type getAnswer struct {
	answer
	Size   int64  `json:"size"` // of the whole file
	MTime  string `json:"mtime"`
	Mode   string `json:"mode"`
	Offset int64  `json:"offset"`
	// Partial says that the file is what an interrupted upload has left.
	Partial bool `json:"partial,omitempty"`
}

func (s *session) doGet(q *request) error {
	return s.withPath(q, func(p string) error {
		if q.Offset < 0 || q.Size != nil && *q.Size < 0 {
			return s.badField("offset and size are not below 0.")
		}
		if q.SHA256 != "" && q.SHA256 != noDigest {
			return s.badField(`sha256 of a get is "none", or left out.`)
		}
		f, e, err := s.jail.openFile(p)
		if err != nil {
			return s.noChange(p, err)
		}
		defer f.Close()
		defer s.jail.set.use(e.id())()
		if q.Offset > e.size {
			return s.noChange(p, &offsetError{have: e.size, want: q.Offset})
		}
		n := e.size - q.Offset
		if q.Size != nil {
			n = min(n, *q.Size)
		}
		s.answer(&getAnswer{answer{Code: codeDataOpening, Text: "Here it comes."}, e.size, e.mtime().UTC().Format(time.RFC3339Nano), modeText(e.mode), q.Offset, markedPartial(f)})
		counted := s.startTransfer(false)
		defer counted.end("error") // of no effect after recordTransfer: only a panic comes to it
		x := s.framedTransfer(false, counted)
		x.file = p
		x.total.Store(n)
		moved := s.elsewhere()
		out := &outgoing{s: s, x: x, f: f, at: q.Offset, end: q.Offset + n}
		var sum []byte
		if n <= smallGet && x.limit == nil {
			sum, err = out.small()
		} else {
			_, err = s.watched(x, s.verb+" "+p, func() (err error) {
				if q.SHA256 == noDigest {
					return out.move(nil)
				}
				sum, err = out.send(&e, p)
				return err
			})
		}
		moved()
		err = x.explain(err)
		s.recordTransfer(p, counted, x, err, nil)
		if err != nil {
			return s.endOfData(err)
		}
		if q.SHA256 == noDigest {
			sum = nil
		}
		s.frame(frameEnd, encodeJSON(endFrame{Size: &n, SHA256: hexText(sum)}))
		s.reply(codeDataClosed, "Complete.")
		return nil
	})
}

// An outgoing is one framed get on its way: the bytes from at to end.
type outgoing struct {
	s       *session
	x       *transfer
	f       *os.File
	at, end int64
}

// small sends what fits into one frame, with the answers around it.
func (o *outgoing) small() ([]byte, error) {
	buf := make([]byte, o.end-o.at)
	if _, err := io.ReadFull(io.NewSectionReader(o.f, o.at, int64(len(buf))), buf); err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			err = errChanged
		}
		return nil, err
	}
	if len(buf) > 0 {
		if err := o.s.frame(frameData, buf); err != nil {
			return nil, err
		}
	}
	o.x.progress(int64(len(buf)))
	sum := sha256.Sum256(buf)
	return sum[:], nil
}

// send sends all of it and returns its digest: the one that is known, or the one
// that a follower computes beside it.
func (o *outgoing) send(e *entry, p string) (sum []byte, err error) {
	whole := o.at == 0 && o.end == e.size
	if whole {
		if sum := keptDigest(int(o.f.Fd()), e); sum != nil {
			return sum, o.move(nil)
		}
	}
	w := newFollower(o.f, o.at, o.s.guard)
	defer w.stop()
	end := o.end
	if _, tcp := o.s.conn.(*net.TCPConn); tcp && end-o.at >= followFrom {
		w.follow(end) // what leaves by sendfile comes by no buffer
		err = o.move(nil)
	} else {
		err = o.copy(w)
	}
	if err != nil {
		return nil, err
	}
	if sum, err = w.finish(end); err != nil {
		return nil, err
	}
	if whole {
		var now entry
		if o.s.jail.mayMark(p) && fstat(o.f, &now) == nil && now.sameContent(e) {
			keepDigest(int(o.f.Fd()), e, sum)
		}
	}
	return sum, nil
}

func (o *outgoing) move(w *follower) error {
	if tcp, ok := o.s.conn.(*net.TCPConn); ok {
		return o.sendfile(tcp)
	}
	return o.copy(w)
}

// sendfile is D frames whose payload the kernel takes from the file itself.
func (o *outgoing) sendfile(tcp *net.TCPConn) error {
	if _, err := o.f.Seek(o.at, io.SeekStart); err != nil {
		return err
	}
	for o.at < o.end {
		if err := o.x.cancelled(); err != nil {
			return err
		}
		n := int(o.x.chunk(min(o.end-o.at, maxFrame)))
		if err := o.x.allow(int64(n)); err != nil {
			return err
		}
		if err := o.sendfileFrame(tcp, n); err != nil {
			return err
		}
	}
	return nil
}

func (o *outgoing) sendfileFrame(tcp *net.TCPConn, n int) error {
	s := o.s
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if s.out == nil {
		s.out = (*outBuffers.Get().(*[]byte))[:0]
	}
	s.out = appendHeader(s.out, frameData, n)
	if err := s.flushMore(tcp); err != nil {
		return err
	}
	for left := int64(n); left > 0; {
		if err := tcp.SetWriteDeadline(time.Now().Add(o.x.timeout)); err != nil {
			s.outErr = err
			return err
		}
		m, err := tcp.ReadFrom(&io.LimitedReader{R: o.f, N: left})
		left -= m
		o.at += m
		o.x.progress(m)
		switch {
		case err != nil && isNetError(err):
			if m > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
				continue // slow, not stalled
			}
			s.outErr = err
			return err
		case err != nil || m == 0:
			// The disk, or a file that became shorter. The frame was announced and
			// has to be filled; without F behind it nobody takes it for the file.
			tcp.Write(make([]byte, left))
			if err == nil {
				err = errChanged
			}
			return err
		}
	}
	s.fr.sent = time.Now()
	return nil
}

// copy is D frames by way of a buffer: under TLS and on unix sockets, and where
// there is not much. w, if not nil, hashes what the buffers hold.
func (o *outgoing) copy(w *follower) error {
	most := int64(copyBuffer - frameHeader)
	large := o.end-o.at >= followFrom
	for o.at < o.end {
		if err := o.x.cancelled(); err != nil {
			return err
		}
		n := int(o.x.chunk(min(o.end-o.at, most)))
		bp := copyBuffers.Get().(*[]byte)
		began := time.Now()
		err := o.copyFrame((*bp)[:frameHeader+n])
		switch {
		case err != nil || w == nil:
			copyBuffers.Put(bp)
		case large:
			w.give(hashBlock{buf: bp, skip: frameHeader, n: n, at: o.at})
		default:
			w.add((*bp)[frameHeader:][:n])
			copyBuffers.Put(bp)
		}
		if err != nil {
			return err
		}
		if time.Since(began) > slowAfter {
			most = slowFrame
		}
		o.at += int64(n)
		o.x.progress(int64(n))
	}
	return nil
}

// copyFrame fills a frame from the file and sends it.
func (o *outgoing) copyFrame(frame []byte) error {
	n := len(frame) - frameHeader
	if m, err := o.f.ReadAt(frame[frameHeader:], o.at); m < n {
		if err == io.EOF {
			err = errChanged
		}
		return err
	}
	appendHeader(frame[:0], frameData, n)
	if err := o.x.allow(int64(n)); err != nil {
		return err
	}
	return o.s.writeFrame(frame, o.x.timeout)
}
