package main

// The datagram room owns the time, echo and discovery service on UDP and unix
// datagram: what a datagram asks, whether anything may be answered to where it
// says it comes from, and the loop that serves one socket. Its own file because
// it has a trust question of its own: every source address may be a lie, so
// nothing here may be of use to somebody who lies about it, as an amplifier, as
// half of a loop, or to fill memory. It knows no users, homes or sessions.
//
// Three things keep two services from being set upon each other. The classic
// request is any text at all, and its answer is the time in ctime form; so a
// text with a time of day in it is taken for somebody's answer and gets none.
// Every other answer is either shorter than its request or is itself no more
// than an unknown word, so any exchange ends after a few steps. And all of it,
// off this machine, is within a rate for each source network.

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/maphash"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// datagramMax holds any UDP datagram (65,527 bytes over IPv6). Longer ones
	// on a unix socket are malformed.
	datagramMax = 64 << 10

	// An answer to another machine is at most this many times its request plus
	// a constant for the IP and UDP headers that the request cost its sender.
	datagramGainFactor = 3
	datagramGainHeader = 28 // 20 of IPv4 and 8 of UDP

	// Source ports below this belong to services (echo 7, daytime 13, chargen
	// 19, time 37) that answer anything: CVE-1999-0103. NTP clients use 123.
	datagramLowPort = 1024
	datagramNTPPort = 123

	// A source network may ask this often; a LAN of 254 boxes that all ask at
	// once after a power cut stays within the burst.
	datagramRate  = 50 // a second
	datagramBurst = 256

	// datagramSlots is the number of source networks told apart, 8 bytes each.
	// More than that share, by a hash with a secret seed, so that a flood of
	// forged sources takes no memory and cannot aim at one victim.
	datagramSlots = 4096

	// Answers that a unix client has not read are charged to our send buffer,
	// 768 bytes or more each, and the kernel has no bound for one client that
	// is connected to us. This holds a few thousand; a client that asks on and
	// never reads still costs the others their answers, until it closes. Who
	// may open the socket file is who may do that.
	datagramUnixBuffer = 1 << 20

	// A read that keeps failing is tried again after a pause that doubles.
	datagramPauseMin = 5 * time.Millisecond
	datagramPauseMax = time.Second

	// rfc868Epoch is 1970-01-01 in seconds since 1900-01-01, RFC 868.
	rfc868Epoch = 2208988800
)

// Layouts of the textual answers. ctime(3) is in local time; RFC 3339 is in
// UTC with fractions, as everywhere in berth's own protocol.
const (
	datagramCtime   = time.ANSIC + "\n"
	datagramRFC3339 = "2006-01-02T15:04:05.000000Z\n"
)

// helloInfo is what discovery tells a stranger on the LAN, as one JSON object.
type helloInfo struct {
	Name        string     `json:"name"`
	Version     string     `json:"version"`
	Ports       helloPorts `json:"ports"`
	Fingerprint string     `json:"fingerprint,omitempty"` // of the TLS certificate, as berth prints it
}

// helloPorts are the ports that other machines can reach; 0 is left out.
type helloPorts struct {
	Control  int `json:"control,omitempty"`
	TLS      int `json:"tls,omitempty"`
	Datagram int `json:"datagram,omitempty"`
}

// A datagramService answers datagrams on any number of sockets at once.
type datagramService struct {
	info  func() helloInfo
	count func(service, result string)
	log   *slog.Logger
	now   func() time.Time
	rate  *datagramLimiter

	hello     func() []byte // d.helloJSON, bound once: a method value allocates
	helloLast atomic.Pointer[helloJSON]
}

type helloJSON struct {
	info helloInfo
	text []byte
}

// newDatagramService returns a service; serve runs it on a socket. info is
// asked at each hello, from any goroutine. m gets one call for each datagram
// received: the service asked (time, rfc3339, rfc868, echo, upper, hello, none)
// and the result (ok, malformed, limited, refused, error).
func newDatagramService(info func() helloInfo, m func(service, result string), log *slog.Logger) *datagramService {
	d := &datagramService{info: info, count: m, log: log, now: time.Now, rate: newDatagramLimiter(time.Now())}
	d.hello = d.helloJSON
	return d
}

// serve answers datagrams on pc until ctx ends, then closes pc and returns
// nil. It returns an error only if pc was closed by somebody else.
func (d *datagramService) serve(ctx context.Context, pc net.PacketConn) error {
	defer pc.Close()
	stop := context.AfterFunc(ctx, func() { pc.Close() })
	defer stop()

	var next func() error // reads and answers one datagram
	switch c := pc.(type) {
	case *net.UDPConn:
		next = d.udpStep(c)
	case *net.UnixConn:
		step, err := d.unixStep(c)
		if err != nil {
			return err
		}
		next = step
	default:
		next = d.packetStep(c)
	}

	pause := time.Duration(0)
	for {
		err := next()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			pause = 0
			continue
		case errors.Is(err, net.ErrClosed):
			return err
		}
		d.count("none", "error")
		if pause == 0 { // said once in a row
			d.log.Warn("datagram read", "listener", pc.LocalAddr().String(), "err", err)
		}
		pause = min(max(2*pause, datagramPauseMin), datagramPauseMax)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// udpStep serves UDP without allocating for a datagram.
func (d *datagramService) udpStep(c *net.UDPConn) func() error {
	local := c.LocalAddr().(*net.UDPAddr).AddrPort()
	udpPrepare(c, local.Addr())
	in, out := make([]byte, datagramMax), make([]byte, 0, datagramMax)
	control := make([]byte, 128)
	return func() error {
		n, cn, flags, src, err := c.ReadMsgUDPAddrPort(in, control)
		if err != nil {
			return err
		}
		answer, service, ok := d.answer(out[:0], in[:n], flags&unix.MSG_TRUNC != 0, src, local.Port())
		if !ok {
			return nil
		}
		// The answer leaves from the address that was asked: a client on a
		// connected socket sees no other, and a box may have several.
		if from := udpReplyFrom(control[:cn]); from != nil {
			if _, _, err = c.WriteMsgUDPAddrPort(answer, from, src); err == nil {
				d.count(service, "ok")
				return nil
			}
			// The request was sent to a broadcast address, which is no source.
		}
		_, err = c.WriteToUDPAddrPort(answer, src)
		d.wrote(service, err)
		return nil
	}
}

// udpPrepare asks for the destination address of each datagram where the
// socket has more than one, and gives up the right to send broadcasts, which
// Go asks for on every UDP socket: the kernel then refuses an answer to a
// forged source that is the broadcast address of a network of ours. Neither is
// needed to serve, so a kernel that refuses is no error.
func udpPrepare(c *net.UDPConn, local netip.Addr) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 0)
		switch {
		case !local.IsUnspecified():
		case local.Is4():
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		default:
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
	})
}

// udpReplyFrom turns the control message of a received datagram, in place,
// into one that sends from the address it was sent to; nil if there is none or
// it is not an address to send from. Layouts: ip(7) in_pktinfo, RFC 3542
// section 6.
func udpReplyFrom(control []byte) []byte {
	if len(control) == 0 {
		return nil
	}
	h, data, _, err := unix.ParseOneSocketControlMessage(control)
	if err != nil {
		return nil
	}
	switch {
	case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
		// ifindex, spec_dst (the local address, also for a broadcast), addr.
		// Routing picks the interface, as it would for any answer. What was
		// queued before udpPrepare, as the datagram that had systemd start us,
		// has no spec_dst but the address in its header.
		clear(data[:4])
		if [4]byte(data[4:8]) == [4]byte{} {
			copy(data[4:8], data[8:12])
		}
		return control
	case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
		addr := netip.AddrFrom16([16]byte(data[:16]))
		if addr.IsMulticast() || addr.Unmap().IsMulticast() {
			return nil
		}
		if !addr.IsLinkLocalUnicast() { // those alone mean nothing without their interface
			clear(data[16:20])
		}
		return control
	}
	return nil
}

// unixStep serves a unix datagram socket.
func (d *datagramService) unixStep(c *net.UnixConn) (func() error, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	// Best effort: the kernel caps it at net.core.wmem_max.
	c.SetWriteBuffer(datagramUnixBuffer)
	own := c.LocalAddr().String()
	in, out := make([]byte, datagramMax+1), make([]byte, 0, datagramMax)
	return func() error {
		n, src, err := c.ReadFromUnix(in)
		if err != nil {
			return err
		}
		answer, service, ok := d.compose(out[:0], in[:n], n > datagramMax)
		if !ok {
			return nil
		}
		if src == nil || src.Name == "" || src.Name == own {
			d.count(service, "refused") // a client that did not bind cannot be answered
			return nil
		}
		// A receiver that does not read must not hold up the others, so the
		// answer is sent now or not at all.
		var sendErr error
		err = raw.Write(func(fd uintptr) bool {
			sendErr = unix.Sendto(int(fd), answer, unix.MSG_DONTWAIT, &unix.SockaddrUnix{Name: src.Name})
			return true
		})
		d.wrote(service, errors.Join(err, sendErr))
		return nil
	}, nil
}

// packetStep serves any other kind of socket. It can tell nothing about the
// source, so it trusts it as a local one.
func (d *datagramService) packetStep(c net.PacketConn) func() error {
	in, out := make([]byte, datagramMax+1), make([]byte, 0, datagramMax)
	return func() error {
		n, src, err := c.ReadFrom(in)
		if err != nil {
			return err
		}
		if answer, service, ok := d.compose(out[:0], in[:n], n > datagramMax); ok {
			_, err = c.WriteTo(answer, src)
			d.wrote(service, err)
		}
		return nil
	}
}

// wrote counts an answer that was to be sent. The error is the network's or
// the client's, and a line for each would let a stranger fill the log.
func (d *datagramService) wrote(service string, err error) {
	if err != nil {
		d.count(service, "error")
		return
	}
	d.count(service, "ok")
}

// answer composes the answer to a datagram from src on a socket with the port
// own, and applies every rule about sources. Without ok there is none, and the
// datagram has been counted.
func (d *datagramService) answer(dst, req []byte, truncated bool, src netip.AddrPort, own uint16) (answer []byte, service string, ok bool) {
	addr := src.Addr().Unmap()
	if !datagramSourceAllowed(addr, src.Port(), own) {
		d.count("none", "refused")
		return nil, "", false
	}
	answer, service, ok = d.compose(dst, req, truncated)
	if !ok || addr.IsLoopback() {
		return answer, service, ok
	}
	if len(answer) > datagramGainFactor*len(req)+datagramGainHeader {
		d.count(service, "malformed") // a hello without enough padding
		return nil, "", false
	}
	if !d.rate.allow(addr, d.now()) {
		d.count(service, "limited")
		return nil, "", false
	}
	return answer, service, true
}

// compose is answerDatagram with what no datagram may do to the others: end
// them by a panic.
func (d *datagramService) compose(dst, req []byte, truncated bool) (answer []byte, service string, ok bool) {
	defer func() {
		if p := recover(); p != nil {
			d.log.Error("datagram panic", "panic", p, "stack", string(debug.Stack()))
			d.count("none", "error")
			answer, service, ok = nil, "", false
		}
	}()
	if !truncated {
		answer, service = answerDatagram(dst, req, d.now(), d.hello)
	}
	if service == "" {
		d.count("none", "malformed")
		return nil, "", false
	}
	return answer, service, true
}

// datagramSourceAllowed says whether anything may be sent to addr (unmapped)
// and port by the service on the port own. A source port equal to ours is this
// service, another berth, or a lie.
func datagramSourceAllowed(addr netip.Addr, port, own uint16) bool {
	switch {
	case port == own:
		return false
	case port < datagramLowPort && port != datagramNTPPort:
		return false
	case !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast():
		return false
	case addr.Is4() && addr.As4()[0] >= 240: // RFC 1112 section 4 reserved, and limited broadcast
		return false
	}
	return true
}

// helloJSON returns the answer to hello, encoded again only when it changed.
func (d *datagramService) helloJSON() []byte {
	info := d.info()
	if last := d.helloLast.Load(); last != nil && last.info == info {
		return last.text
	}
	text, err := json.Marshal(info)
	if err != nil { // strings and numbers cannot fail
		return nil
	}
	text = append(text, '\n')
	d.helloLast.Store(&helloJSON{info, text})
	return text
}

// answerDatagram appends to dst the answer to req and names the service that
// gives it; an empty name means that req is not a request and gets none. hello
// returns the discovery answer. It does not allocate if dst has the room, and
// knows nothing of limits.
//
//	(empty)         the time as RFC 868 has it: 4 bytes, seconds since 1900
//	time            the local time as ctime(3) writes it
//	time rfc3339    the time in UTC as RFC 3339 writes it
//	echo TEXT       TEXT, byte for byte
//	upper TEXT      TEXT in upper case, never longer than it was
//	hello PADDING   who this is, as JSON
//	other text      as time
//
// The first word is known in either case and may end in white space or a NUL,
// as C programs send it.
func answerDatagram(dst, req []byte, now time.Time, hello func() []byte) (answer []byte, service string) {
	if len(req) == 0 {
		return binary.BigEndian.AppendUint32(dst, uint32(now.Unix()+rfc868Epoch)), "rfc868"
	}
	end := 0
	for end < len(req) && !datagramSpace(req[end]) {
		end++
	}
	word, text := req[:end], req[end:]
	if len(text) > 0 && text[0] == ' ' {
		text = text[1:]
	}
	switch {
	case datagramFold(word, "echo"):
		return append(dst, text...), "echo"
	case datagramFold(word, "upper"):
		return appendUpper(dst, text), "upper"
	case datagramFold(word, "hello"):
		return append(dst, hello()...), "hello"
	case datagramFold(word, "time") && datagramFold(datagramTrim(text), "rfc3339"):
		return now.UTC().AppendFormat(dst, datagramRFC3339), "rfc3339"
	case !datagramIsWord(req):
		return nil, ""
	}
	return now.Local().AppendFormat(dst, datagramCtime), "time"
}

func datagramSpace(b byte) bool {
	return b == ' ' || b == '\t' || b == '\r' || b == '\n' || b == 0
}

func datagramTrim(b []byte) []byte {
	for len(b) > 0 && datagramSpace(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && datagramSpace(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

// datagramFold is bytes.EqualFold for ASCII only: U+017F folds to s there.
func datagramFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// datagramIsWord says whether req may ask the time by being any text. Not what
// is no text (another protocol's packet), and not a text with a clock in it,
// which some service sent as its answer; see the head of this file.
func datagramIsWord(req []byte) bool {
	text := datagramTrim(req)
	if !utf8.Valid(text) {
		return false
	}
	for i, c := range text {
		if c == 0x7f || c < ' ' && !datagramSpace(c) || c == 0 {
			return false
		}
		if c == ':' && datagramClock(text, i) {
			return false
		}
	}
	return true
}

// datagramClock says whether the colon at text[i] is the first of "15:04:05".
func datagramClock(text []byte, i int) bool {
	if i < 2 || i+6 > len(text) || text[i+3] != ':' {
		return false
	}
	for _, k := range [...]int{i - 2, i - 1, i + 1, i + 2, i + 4, i + 5} {
		if text[k] < '0' || text[k] > '9' {
			return false
		}
	}
	return true
}

// appendUpper appends text in upper case. A letter whose upper case is longer
// in UTF-8 stays as it is, and so does what is not UTF-8: the answer must not
// outgrow the request.
func appendUpper(dst, text []byte) []byte {
	for i := 0; i < len(text); {
		if c := text[i]; c < utf8.RuneSelf {
			if 'a' <= c && c <= 'z' {
				c -= 'a' - 'A'
			}
			dst = append(dst, c)
			i++
			continue
		}
		r, n := utf8.DecodeRune(text[i:])
		if up := unicode.ToUpper(r); n > 1 && utf8.RuneLen(up) <= n {
			dst = utf8.AppendRune(dst, up)
		} else {
			dst = append(dst, text[i:i+n]...)
		}
		i += n
	}
	return dst
}

// A datagramLimiter is a token bucket for each source network, an IPv4 /24 or
// an IPv6 /64, in a table of fixed size. A bucket is one number: the time at
// which it will be full again.
type datagramLimiter struct {
	start time.Time // times in the table are since then, by the monotonic clock
	seed  maphash.Seed
	full  [datagramSlots]atomic.Int64
}

func newDatagramLimiter(start time.Time) *datagramLimiter {
	return &datagramLimiter{start: start, seed: maphash.MakeSeed()}
}

// allow takes one token of addr's network, if there is one.
func (l *datagramLimiter) allow(addr netip.Addr, now time.Time) bool {
	const (
		token    = int64(time.Second) / datagramRate
		capacity = datagramBurst * token
	)
	var network [9]byte
	if addr.Is4() {
		a := addr.As4()
		copy(network[:], a[:3])
		network[8] = 4
	} else {
		a := addr.As16()
		copy(network[:], a[:8])
	}
	slot := &l.full[maphash.Bytes(l.seed, network[:])%datagramSlots]
	at := int64(now.Sub(l.start))
	for {
		old := slot.Load()
		next := max(old, at) + token
		if next-at > capacity {
			return false
		}
		if slot.CompareAndSwap(old, next) {
			return true
		}
	}
}
