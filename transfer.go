// transfer.go moves bytes over data connections that data.go has opened: files
// in both directions, under limits of rate, and digests of what lies there.
//
// It knows files and sockets but no verbs and no reply codes. The rule that
// shapes it: a plain file goes from disk to socket by sendfile(2) and from
// socket to disk by splice(2), which Go does only when it sees the bare
// *net.TCPConn and *os.File. So limits, deadlines, counting and cancelling
// all happen between chunks and never as a wrapper around either.

package main

import (
	"cmp"
	"compress/zlib"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"hash"
	"hash/crc32"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

const (
	// sendChunk is how much one sendfile call is asked for at most: often
	// enough for limits and progress, too seldom to cost anything. The first are
	// asked for sendFirst and no later one for more than goes in about rateStep, so
	// that who sees slow downloads move too.
	sendChunk = 8 << 20
	sendFirst = 256 << 10
	sendLeast = 16 << 10
	// copyBuffer is for TLS and hashing copies; larger measured no faster. Plain
	// uploads go over to splice after the first one: most files are smaller, and
	// a splice costs a pipe.
	copyBuffer = 256 << 10
	// pipeSize is what one splice moves at most: pipe-max-size (pipe(7)) as the
	// kernel has it by default.
	pipeSize = 1 << 20
	// maxSplices bounds the pipes that splices hold: past pipe-user-pages-soft
	// (16,384 pages a user, pipe(7)) new pipes shrink to two pages.
	maxSplices = 48
	// A MODE Z stream may grow by bombRatio, and by bombSlack beyond that.
	bombRatio = 200
	bombSlack = 64 << 20
)

var (
	errAborted     = errors.New("transfer aborted by the client")
	errControlGone = errors.New("the control connection went away")
	errStalled     = errors.New("nothing moved on the data connection")
	errNoData      = errors.New("no data connection")
	errCutShort    = errors.New("the data connection ended without close_notify")
	errChanged     = errors.New("the file became shorter while it was sent")
	errBomb        = errors.New("compressed data grows beyond all measure")
	errNoPort      = errors.New("no passive port is free")
)

// allow waits until the rate limit lets n more bytes pass.
func (x *transfer) allow(n int64) error {
	if x.limit == nil || n == 0 {
		return nil
	}
	now := time.Now()
	r := x.limit.ReserveN(now, int(min(n, int64(x.limit.Burst()))))
	d := r.DelayFrom(now)
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-x.stop:
		return x.cancelled()
	}
}

// chunk is how much may be moved between two looks at the limit.
func (x *transfer) chunk(most int64) int64 {
	if x.limit != nil {
		return min(most, int64(x.limit.Burst()))
	}
	return most
}

// newLimiter is a limit of perSecond bytes; its burst, and so the step in
// which transfers under it move, is a quarter of a second's worth.
func newLimiter(perSecond int64) *rate.Limiter {
	if perSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), int(min(max(perSecond/4, 512), sendChunk)))
}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}

// coding is what happens to bytes on their way: nothing, in the zero value.
type coding struct {
	ascii bool // line ends (RFC 959 section 3.1.1.1)
	z     bool // MODE Z: a zlib stream
}

// --- downloads ---

// send sends size bytes of f from offset on. It reads nothing beyond what f
// had when size was taken, so a file that grows or is replaced meanwhile is
// sent as it was; one that shrinks is errChanged.
func (x *transfer) send(f *os.File, offset, size int64, c coding) error {
	if offset > 0 {
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			return err
		}
	}
	if x.tls == nil && c == (coding{}) {
		switch c := x.conn.(type) {
		case *quickConn:
			return x.explain(x.sendfile(func(n int64) (int64, error) { return c.sendfile(f, n) }, size))
		case *net.TCPConn:
			return x.explain(x.sendfile(func(n int64) (int64, error) { return c.ReadFrom(&io.LimitedReader{R: f, N: n}) }, size))
		}
	}
	return x.explain(x.sendCopy(f, size, c))
}

// sendfile moves left bytes by step, which is sendfile(2) on one kind of socket
// or another.
func (x *transfer) sendfile(step func(n int64) (int64, error), left int64) error {
	most := int64(sendFirst)
	for left > 0 {
		if err := x.extend(); err != nil {
			return err
		}
		began := time.Now()
		n, err := step(x.chunk(min(left, most)))
		x.progress(n)
		left -= n
		most = paced(most, time.Since(began), sendChunk)
		if err != nil {
			if n > 0 && errors.Is(err, os.ErrDeadlineExceeded) && x.cancelled() == nil {
				continue // slow, not stalled
			}
			return err
		}
		if n == 0 {
			return errChanged
		}
		// Charged is what went: one step on a socket may be far less than asked.
		if err := x.allow(n); err != nil {
			return err
		}
	}
	return nil
}

// paced is what the next step may move at most, when the last one of at most that
// many bytes took so long.
func paced(most int64, took time.Duration, top int64) int64 {
	switch {
	case took > rateStep:
		return max(most/4, sendLeast)
	case took < rateStep/4:
		return min(2*most, top)
	}
	return most
}

func (x *transfer) sendCopy(f *os.File, left int64, c coding) error {
	bp := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(bp)
	w, finish := x.encoder(c)
	most := int64(copyBuffer)
	for left > 0 {
		n, err := f.Read((*bp)[:x.chunk(min(left, most))])
		if n > 0 {
			if err := x.allow(int64(n)); err != nil {
				return err
			}
			began := time.Now()
			if _, err := w.Write((*bp)[:n]); err != nil {
				return err
			}
			x.progress(int64(n))
			left -= int64(n)
			most = paced(most, time.Since(began), copyBuffer)
		}
		if err == io.EOF && left > 0 {
			return errChanged
		}
		if err != nil {
			return err
		}
	}
	return finish()
}

// encoder is the writer that a copying download writes to, and what ends it.
func (x *transfer) encoder(c coding) (w io.Writer, finish func() error) {
	w = x.stream()
	finish = func() error { return nil }
	if c.z {
		z, _ := zlib.NewWriterLevel(w, zlib.BestSpeed)
		w, finish = z, z.Close
	}
	if c.ascii {
		w = &crlfWriter{w: w}
	}
	return w, finish
}

// crlfWriter turns every LF that has no CR before it into CR LF.
type crlfWriter struct {
	w   io.Writer
	cr  bool
	buf []byte
}

func (c *crlfWriter) Write(p []byte) (int, error) {
	c.buf = c.buf[:0]
	for _, b := range p {
		if b == '\n' && !c.cr {
			c.buf = append(c.buf, '\r')
		}
		c.cr = b == '\r'
		c.buf = append(c.buf, b)
	}
	if _, err := c.w.Write(c.buf); err != nil {
		return 0, err
	}
	return len(p), nil
}

// lfReader turns CR LF into LF and leaves a lone CR alone.
type lfReader struct {
	r  io.Reader
	cr bool // a CR is held back
}

func (l *lfReader) Read(p []byte) (int, error) {
	if len(p) < 2 {
		return 0, io.ErrShortBuffer
	}
	n, err := l.r.Read(p[:len(p)/2])
	in := p[len(p)/2:][:n]
	copy(in, p[:n])
	out := p[:0]
	for _, b := range in {
		if l.cr && b != '\n' {
			out = append(out, '\r')
		}
		if l.cr = b == '\r'; !l.cr {
			out = append(out, b)
		}
	}
	if err == io.EOF && l.cr {
		out, l.cr = append(out, '\r'), false
	}
	return len(out), err
}

// sent is the writer for listings: it counts, and flushes nothing by itself.
type sent struct {
	x         *transfer
	w         io.Writer
	elsewhere func() (back func()) // told while a client takes its time
}

func (s sent) Write(p []byte) (int, error) {
	defer s.elsewhere()()
	n, err := s.w.Write(p)
	s.x.progress(int64(n))
	return n, s.x.explain(err)
}

// --- uploads ---

// splices counts the uploads that hold a splice pipe now.
type splices struct{ n atomic.Int32 }

func (s *splices) take() bool {
	if s.n.Add(1) > maxSplices {
		s.n.Add(-1)
		return false
	}
	return true
}

func (s *splices) give() { s.n.Add(-1) }

// receive takes what the client sends into u until the data connection ends
// well. It returns nil only for a FIN (never a reset); under TLS notified
// tells whether close_notify came before it. sum, if not nil, sees every byte
// of the file that arrives.
func (x *transfer) receive(u *upload, c coding, sum hash.Hash, sp *splices) (notified bool, err error) {
	if x.tls == nil && c == (coding{}) && sum == nil {
		return true, x.explain(x.splice(u, sp))
	}
	err = x.explain(x.receiveCopy(u, c, sum))
	return err == nil && (x.eof == nil || !x.eof.sawEOF()), err
}

func (x *transfer) splice(u *upload, sp *splices) error {
	bp := copyBuffers.Get().(*[]byte)
	end, err := x.fill(u, *bp)
	copyBuffers.Put(bp)
	if err != nil || end {
		return err
	}
	tcp, err := x.bareTCP()
	if err != nil {
		return err
	}
	var p *pipe
	if tcp != nil {
		p = openPipe(sp)
	}
	if p == nil {
		return x.receiveCopy(u, coding{}, nil)
	}
	defer p.close()
	return x.pump(u, tcp, p)
}

// A pipe is what splice(2) moves an upload through, socket to pipe to file, which
// io.Copy would do too. But only between the two, when it is known how much comes
// and nothing is written yet, can the quota be asked.
type pipe struct {
	r, w  int
	count *splices
}

// openPipe makes one; nil: there are too many, or none can be had.
func openPipe(count *splices) *pipe {
	if !count.take() {
		return nil
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		count.give()
		return nil
	}
	unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize) // if not, the default of 64 KiB works too
	return &pipe{fds[0], fds[1], count}
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
	p.count.give()
}

// take brings up to most bytes from the socket into the pipe, which is empty; 0 is
// the end.
func (p *pipe) take(x *transfer, tcp *net.TCPConn, most int) (int, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, err
	}
	if err := x.extend(); err != nil {
		return 0, err
	}
	most = int(x.chunk(int64(min(most, pipeSize))))
	n := 0
	var serr error
	err = raw.Read(func(fd uintptr) bool {
		for {
			got, e := unix.Splice(int(fd), nil, p.w, nil, most, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
			if n, serr = int(got), e; serr != unix.EINTR { // got's type is the processor's
				return serr != unix.EAGAIN // the pipe is empty: it is the socket that has nothing
			}
		}
	})
	if err == nil && serr != nil {
		err = &net.OpError{Op: "splice", Net: "tcp", Addr: tcp.RemoteAddr(), Err: os.NewSyscallError("splice", serr)}
	}
	return n, err
}

// pump takes an upload from the data connection until its end.
func (x *transfer) pump(u *upload, tcp *net.TCPConn, p *pipe) error {
	for {
		n, err := p.take(x, tcp, pipeSize)
		if n == 0 || err != nil {
			return err
		}
		before := u.size
		err = u.drain(p.r, n)
		x.progress(u.size - before)
		if err != nil {
			return err
		}
		if err := x.allow(int64(n)); err != nil {
			return err
		}
	}
}

// fill takes the first buffer's worth of an upload, and tells whether that
// was all of it.
func (x *transfer) fill(u *upload, buf []byte) (end bool, err error) {
	if x.limit != nil {
		buf = buf[:x.chunk(int64(len(buf)))]
	}
	n := 0
	if err := x.extend(); err != nil {
		return false, err
	}
	for first := true; n < len(buf) && err == nil; {
		if first && n > 0 { // a slow client's bytes are not held back for long
			first = false
			if err := x.extendFor(min(rateStep, x.timeout)); err != nil {
				return false, err
			}
		}
		var m int
		m, err = x.conn.Read(buf[n:])
		n += m
		if err != nil && m == 0 && n > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			break // what is there gets written first; the next read tells whether it stalled
		}
	}
	end = err == io.EOF
	if end || errors.Is(err, os.ErrDeadlineExceeded) && n > 0 && x.cancelled() == nil {
		err = nil
	}
	if n > 0 {
		w, werr := u.Write(buf[:n])
		x.progress(int64(w))
		if werr != nil {
			return end, werr
		}
		if lerr := x.allow(int64(n)); lerr != nil {
			return end, lerr
		}
	}
	return end, err
}

func (x *transfer) receiveCopy(u *upload, c coding, sum hash.Hash) error {
	bp := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(bp)
	buf := *bp
	var r io.Reader = x.stream()
	wire := r
	if c.z {
		in := &countReader{r: r}
		z, err := zlib.NewReader(in)
		if err != nil {
			return errorf("MODE Z: %w", err)
		}
		r = &bombGuard{r: z, in: in}
	}
	if c.ascii {
		r = &lfReader{r: r}
	}
	for {
		most := int(x.chunk(copyBuffer))
		n := 0
		var err error
		for n <= most-2 && err == nil { // lfReader wants room for two
			var m int
			m, err = r.Read(buf[n:most])
			n += m
			if c.z && n > 0 {
				break // no zlib.Reader goes on after a time-out
			}
			x.filling(n > 0)
		}
		x.filling(false)
		if n > 0 && errors.Is(err, os.ErrDeadlineExceeded) && x.cancelled() == nil {
			err = nil // slow; the next read tells whether it stalled
		}
		if n > 0 {
			if sum != nil {
				sum.Write(buf[:n])
			}
			w, werr := u.Write(buf[:n])
			x.progress(int64(w))
			if werr != nil {
				return werr
			}
			if err := x.allow(int64(n)); err != nil {
				return err
			}
		}
		if err == io.EOF {
			if c.z { // the end of the zlib stream is not yet the end of the connection
				if m, werr := wire.Read(buf[:1]); m > 0 || werr != io.EOF {
					return cmp.Or(werr, errTrailing)
				}
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

var errTrailing = errors.New("zlib: data behind the end of the stream")

type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// bombGuard stops a MODE Z stream that unpacks to far more than it was.
type bombGuard struct {
	r   io.Reader
	in  *countReader
	out int64
}

func (b *bombGuard) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.out += int64(n); b.out > bombSlack+bombRatio*b.in.n {
		return n, errBomb
	}
	return n, err
}

// --- digests ---

// digests are the algorithms of HASH and the X-commands, strongest first, as
// FEAT lists them (draft-bryan-ftpext-hash section 4).
var digests = []struct {
	name string
	verb string // of the X family
	make func() hash.Hash
}{
	{"SHA-512", "XSHA512", sha512.New},
	{"SHA-256", "XSHA256", sha256.New},
	{"SHA-1", "XSHA1", sha1.New},
	{"MD5", "XMD5", md5.New},
	{"CRC32", "XCRC", func() hash.Hash { return crc32.NewIEEE() }},
}

// digest computes h over f[start:end). It stops with cancelled's error as
// soon as that returns one, so that a lost client costs no more reading.
func digest(h hash.Hash, f *os.File, start, end int64, cancelled func() error) error {
	unix.Fadvise(int(f.Fd()), start, end-start, unix.FADV_SEQUENTIAL)
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		return err
	}
	bp := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(bp)
	for left := end - start; left > 0; {
		if err := cancelled(); err != nil {
			return err
		}
		n, err := f.Read((*bp)[:min(left, copyBuffer)])
		h.Write((*bp)[:n])
		left -= int64(n)
		if err == io.EOF && left > 0 {
			return errChanged
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}
