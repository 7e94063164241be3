// client_dial.go brings a connection to where frames begin: it dials, reads the
// greeting, starts TLS, asks for frames, and says in words why one of these did not
// work. It is apart from client.go, which is the connection from then on, and knows no
// line of FTP.

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dialRemote connects to spec and logs in; password is asked for each try. The
// connection ends with ctx.
func dialRemote(ctx context.Context, spec *hostSpec, silence time.Duration, login func(c *remote) error) (*remote, error) {
	c, err := dialLines(ctx, spec, silence)
	if err != nil {
		return nil, err
	}
	if err := login(c); err != nil {
		c.fail(err)
		c.reader.Wait()
		return nil, err
	}
	return c, nil
}

// dialLines brings a connection to where frames begin.
func dialLines(ctx context.Context, spec *hostSpec, silence time.Duration) (*remote, error) {
	dialer := net.Dialer{Timeout: min(dialTimeout, silence), KeepAlive: silence / 3}
	conn, err := dialer.DialContext(ctx, spec.network, spec.address)
	if err != nil {
		return nil, dialError(ctx, spec, err)
	}
	// "localhost" is what the resolver makes of it; in clear text nothing leaves this machine
	// that nobody has allowed.
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); spec.mayFallBack && (!ok || !a.IP.IsLoopback()) {
		conn.Close()
		return nil, &connError{text: fmt.Sprintf("%s is %v here, which is not this machine; connect by address, or with --tls", spec.name, conn.RemoteAddr())}
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	c := &remote{host: spec.name, silence: silence, ended: make(chan struct{})}
	in, err := c.open(conn, spec)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			return nil, errInterrupted
		}
		return nil, err
	}
	setUserTimeout(conn, silence)
	c.alive.Store(time.Now().UnixNano())
	c.out = bufio.NewWriterSize(livelyWriter{c}, clientBuffer)
	c.reader.Add(2)
	go c.read(in)
	go c.watch(ctx)
	return c, nil
}

// open reads the greeting, starts TLS and asks for frames.
func (c *remote) open(conn net.Conn, spec *hostSpec) (*bufio.Reader, error) {
	c.conn = conn
	in := newReader(livelyReader{c, conn}, clientBuffer)
	wait := min(dialTimeout, c.silence)
	ask := func(line, want, otherwise string) error {
		conn.SetDeadline(time.Now().Add(wait))
		if line != "" {
			if _, err := io.WriteString(c.conn, line+"\r\n"); err != nil {
				return lostError(spec.name, err)
			}
		}
		got, err := readReply(in)
		switch {
		case errors.Is(err, errGarbage):
			return &connError{text: fmt.Sprintf("%s answers with something that is no berth (%s); check the port, berth's is %s", spec.name, shownText(got), defaultPort)}
		case errors.Is(err, os.ErrDeadlineExceeded):
			return &connError{fmt.Sprintf("%s says nothing for %v; check that berth is what listens at %s", spec.name, wait, spec.address), err}
		case err != nil:
			return lostError(spec.name, err)
		case beginsWith(got, "421"):
			return &connError{text: fmt.Sprintf("%s takes no connection: %s", spec.name, shownText(strings.TrimSpace(got[3:])))}
		case !beginsWith(got, want):
			return &connError{text: fmt.Sprintf("%s answers %q; %s", spec.name, shownText(got), otherwise)}
		}
		return nil
	}
	notBerth := fmt.Sprintf("it speaks FTP but not berth's frames: use an FTP client for it, as lftp ftp://%s", spec.address)
	if err := ask("", "220", "it is no berth"); err != nil {
		return nil, err
	}
	if spec.tls {
		if err := ask("AUTH TLS", "234", "so there is no TLS; "+"--plain sends everything, the password too, in clear text"); err != nil {
			return nil, err
		}
		cfg, err := spec.tlsConfig()
		if err != nil {
			return nil, err
		}
		batch := &batchConn{Conn: conn, in: newReader(livelyReader{c, conn}, clientBuffer)}
		tc := tls.Client(batch, cfg)
		conn.SetDeadline(time.Now().Add(wait))
		if err := tc.Handshake(); err != nil {
			what := err.Error()
			switch {
			case errors.Is(err, os.ErrDeadlineExceeded):
				what = fmt.Sprintf("it says nothing for %v", wait)
			case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
				what = "it closed the connection in the middle of the handshake"
			}
			return nil, &connError{fmt.Sprintf("no TLS with %s: %s", spec.name, shownText(what)), err}
		}
		conn.SetDeadline(time.Time{}) // a person may be asked
		if err := spec.checkCertificate(tc.ConnectionState()); err != nil {
			return nil, err
		}
		c.conn, in = tc, newReader(tc, maxGreeting)
	}
	if err := ask("FRAM 1", "200", notBerth); err != nil {
		return nil, err
	}
	return in, conn.SetDeadline(time.Time{})
}

var errGarbage = errors.New("not a reply of FTP")

// readReply reads one reply, the last line of it if it has several.
func readReply(in *bufio.Reader) (string, error) {
	first := ""
	for size := 0; ; {
		line, err := in.ReadSlice('\n')
		size += len(line)
		text := strings.TrimRight(string(line), "\r\n")
		if first == "" {
			if err == nil || len(text) > 3 {
				if !isReply(text) {
					return text[:min(len(text), 60)], errGarbage
				}
			}
			first = text
		}
		if err != nil {
			if errors.Is(err, bufio.ErrBufferFull) {
				err = errGarbage
			}
			return text, err
		}
		if size > maxGreeting {
			return first, errGarbage
		}
		if len(text) == 3 || beginsWith(text, first[:3]+" ") {
			return text, nil
		}
	}
}

func isReply(s string) bool {
	return len(s) >= 3 && s[0] >= '1' && s[0] <= '5' && s[1] >= '0' && s[1] <= '9' && s[2] >= '0' && s[2] <= '9' && (len(s) == 3 || s[3] == ' ' || s[3] == '-')
}

// dialError says why a box could not be reached, and what to look at.
func dialError(ctx context.Context, spec *hostSpec, err error) error {
	var dns *net.DNSError
	var late net.Error
	what := err.Error()
	switch {
	case ctx.Err() != nil:
		return errInterrupted
	case errors.As(err, &dns) && !dns.IsNotFound:
		what = fmt.Sprintf("the name server tells nothing of %s (%s); is this machine on the network?", shownText(dns.Name), shownText(dns.Err))
	case dns != nil:
		what = fmt.Sprintf("there is no host %s; check the name, or give it an address in %s", shownText(dns.Name), configFileHint)
	case errors.Is(err, syscall.ECONNREFUSED):
		what = fmt.Sprintf("nothing listens at %s; is berth running there, and is it that port?", spec.address)
	case errors.As(err, &late) && late.Timeout(), errors.Is(err, syscall.ETIMEDOUT):
		what = fmt.Sprintf("no answer from %s; is the machine on, and the port open in its firewall?", spec.address)
	case errors.Is(err, syscall.ENOENT):
		what = fmt.Sprintf("there is no socket %s; is berth running?", spec.address)
	case errors.Is(err, syscall.EACCES) && spec.network == "unix":
		what = fmt.Sprintf("no permission for the socket %s; its owner or root may connect", spec.address)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		what = fmt.Sprintf("no way to %s; is this machine on that network?", spec.address)
	}
	return &connError{"cannot connect to " + spec.name + ": " + what, err}
}

// lostError is a connection that broke.
func lostError(host string, err error) error {
	what := "the connection broke"
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		what = "the box closed the connection"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		what = "the connection was reset"
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, os.ErrDeadlineExceeded):
		what = "the connection timed out"
	case err != nil:
		what = "the connection broke (" + shownText(err.Error()) + ")"
	}
	return &connError{host + ": " + what, err}
}

// setUserTimeout has the kernel give a connection up whose data the other side does
// not acknowledge, tcp(7); without it that takes a quarter of an hour.
func setUserTimeout(conn net.Conn, limit time.Duration) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit/time.Millisecond))
			})
		}
	}
}

// A batchConn is what TLS reads from and writes to: crypto/tls makes a system call
// of each record of 16 KiB, and these cost more than the encryption.
type batchConn struct {
	net.Conn
	in *bufio.Reader

	mu   mutex // TLS writes for its reader, too: alerts and new keys
	held bool  // what is written waits
	out  []byte
}

func (b *batchConn) Read(p []byte) (int, error) { return b.in.Read(p) }

func (b *batchConn) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.held {
		return b.Conn.Write(p)
	}
	b.out = append(b.out, p...)
	return len(p), nil
}

// batch has what write writes leave at once.
func (b *batchConn) batch(write func() (int, error)) (int, error) {
	b.mu.Lock()
	b.held, b.out = true, b.out[:0]
	b.mu.Unlock()
	n, err := write()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held = false
	if len(b.out) > 0 {
		if _, werr := b.Conn.Write(b.out); err == nil {
			err = werr
		}
	}
	return n, err
}

// livelyReader reads from the connection, and takes each byte for a sign of life: on a
// slow line one frame takes minutes.
type livelyReader struct {
	c    *remote
	conn net.Conn
}

func (r livelyReader) Read(p []byte) (n int, err error) {
	if n, err = r.conn.Read(p); n > 0 {
		r.c.alive.Store(time.Now().UnixNano())
	}
	return n, err
}

// livelyWriter writes to the connection, and takes each write that succeeds for a
// sign of life: a slow line has much to do before it can answer.
type livelyWriter struct{ c *remote }

func (w livelyWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		part := p[:min(len(p), clientBuffer)]
		var m int
		if tc, ok := w.c.conn.(*tls.Conn); ok {
			m, err = tc.NetConn().(*batchConn).batch(func() (int, error) { return tc.Write(part) })
		} else {
			m, err = w.c.conn.Write(part)
		}
		n += m
		p = p[m:]
		if !w.c.asks {
			w.c.alive.Store(time.Now().UnixNano())
		}
	}
	return n, err
}
