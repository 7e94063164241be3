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
// An echo that would be echoed again is not sent to another machine, and every
// other answer is itself no more than an unknown word, so any exchange ends
// after a few steps. And all of it, off this machine, is within a rate for each
// source network.

import (
	"bytes"
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
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// datagramMax holds any UDP datagram (65,527 bytes over IPv6). Longer ones
	// on a unix socket are malformed. A multiple of every size of page.
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

	// datagramNobody is the uid in place of one that cannot be told, as the
	// kernel has it in /proc/sys/kernel/overflowuid.
	datagramNobody = 65534

	// datagramLoopback is the index of lo in every network namespace.
	datagramLoopback = 1

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

	// allowed is [filter] of the configuration, for an unmapped address
	// without a zone; nil allows everyone. Set before serve, called from any
	// goroutine for each datagram on UDP.
	allowed func(netip.Addr) bool

	hello     func() []byte // d.helloJSON, bound once: a method value allocates
	helloLast atomic.Pointer[helloJSON]
}

type helloJSON struct {
	info helloInfo
	text []byte
}

// newDatagramService returns a service; serve runs it on a socket. info is
// asked at each hello, from any goroutine; allowed may be set next. m gets one call for each datagram
// received: the service asked (time, rfc3339, rfc868, echo, upper, hello, none)
// and the result (ok, malformed, limited, refused, error).
func newDatagramService(info func() helloInfo, m func(service, result string), log *slog.Logger) *datagramService {
	d := &datagramService{info: info, count: m, log: log, now: time.Now, rate: newDatagramLimiter(time.Now())}
	d.hello = d.helloJSON
	return d
}

// serve answers datagrams on pc until ctx ends, then closes pc and returns
// nil. It returns an error if pc was closed by somebody else, or cannot be
// served at all.
func (d *datagramService) serve(ctx context.Context, pc net.PacketConn) error {
	defer pc.Close()
	stop := context.AfterFunc(ctx, func() { pc.Close() })
	defer stop()

	var b *datagramBatch
	var next func() error // reads and answers a batch
	var err error
	switch c := pc.(type) {
	case *net.UDPConn:
		b, next, err = d.udpStep(c)
	case *net.UnixConn:
		b, next, err = d.unixStep(c)
	default:
		err = errorf("datagrams on %T: neither UDP nor a unix socket", pc)
	}
	if err != nil {
		return err
	}
	defer b.close()

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
			d.log.Warn("datagram read", "listener", pc.LocalAddr().String(), "error", err)
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

// udpStep serves UDP, a batch at a step.
func (d *datagramService) udpStep(c *net.UDPConn) (*datagramBatch, func() error, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	b, err := newDatagramBatch(c, raw, datagramBatchSize, datagramControl, d.wrote)
	if err != nil {
		return nil, nil, err
	}
	b.patience = datagramPatience
	local := c.LocalAddr().(*net.UDPAddr).AddrPort()
	udpPrepare(raw, local.Addr())
	return b, func() error {
		n, err := b.read()
		if err != nil {
			return err
		}
		now := d.now() // of them all: a batch takes less than the answer's way back
		for i := range n {
			r := b.request(i)
			// The answer leaves from the address that was asked: a client on a
			// connected socket sees no other, and a box may have several.
			from, device := udpReplyFrom(r.control)
			q := datagramQuestion{text: r.text, truncated: r.truncated, src: datagramSource(r.name), own: local.Port(), device: device, at: now}
			if answer, service, ok := d.answer(b.room(), &q); ok {
				b.reply(i, answer, service, from)
			}
		}
		b.flush()
		return nil
	}, nil
}

// udpPrepare asks for the destination address and the device of each datagram,
// and gives up the right to send broadcasts, which Go asks for on every UDP
// socket: the kernel then refuses an answer to a forged source that is the
// broadcast address of a network of ours. Neither is needed to serve, so a
// kernel that refuses is no error.
func udpPrepare(raw syscall.RawConn, local netip.Addr) {
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 0)
		if local.Is4() {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		} else {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
	})
}

// udpReplyFrom finds the control message with the destination of a received
// datagram, among others that a socket unit may have asked for, and turns it,
// in place, into one that sends from there; nil if there is none or it is not
// an address to send from. device is the index of the interface that it came
// in by, 0 if that is not known. Layouts: ip(7) in_pktinfo, RFC 3542 section 6.
func udpReplyFrom(control []byte) (from []byte, device uint32) {
	for len(control) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return nil, 0
		}
		whole := control[:min(unix.CmsgLen(len(data)), len(control))]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// ifindex, spec_dst (the local address, also for a broadcast), addr.
			// Routing picks the interface, as it would for any answer. What was
			// queued before udpPrepare, as the datagram that had systemd start
			// us, has no spec_dst but the address in its header.
			device = binary.NativeEndian.Uint32(data)
			clear(data[:4])
			if [4]byte(data[4:8]) == [4]byte{} {
				copy(data[4:8], data[8:12])
			}
			return whole, device
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			addr := netip.AddrFrom16([16]byte(data[:16]))
			device = binary.NativeEndian.Uint32(data[16:])
			if addr.IsMulticast() || addr.Unmap().IsMulticast() {
				return nil, device
			}
			if !addr.IsLinkLocalUnicast() { // those alone mean nothing without their interface
				clear(data[16:20])
			}
			return whole, device
		}
		control = rest
	}
	return nil, 0
}

// unixStep serves a unix datagram socket, one datagram at a step: each answer
// needs its receiver's socket file looked at, which costs several times what a
// batch would save, and a client that does not read is common here and would
// stop each batch it is in.
func (d *datagramService) unixStep(c *net.UnixConn) (*datagramBatch, func() error, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	// No patience: a receiver that does not read must not hold up the others.
	b, err := newDatagramBatch(c, raw, 1, datagramUnixControl, d.wrote)
	if err != nil {
		return nil, nil, err
	}
	// Best effort: the kernel caps it at net.core.wmem_max.
	c.SetWriteBuffer(datagramUnixBuffer)
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		credErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	}); err != nil || credErr != nil { // without it the kernel would hand us descriptors; see datagramUnixControl
		b.close()
		return nil, nil, joinErrors(err, credErr)
	}
	own := c.LocalAddr().String()
	var st unix.Stat_t
	return b, func() error {
		if _, err := b.read(); err != nil {
			return err
		}
		r := b.request(0)
		answer, service, ok := d.compose(b.room(), r.text, r.truncated, d.now())
		if !ok {
			return nil
		}
		file, ok := unixSource(r.name, own)
		if !ok {
			d.count(service, "refused") // a client that did not bind cannot be answered
			return nil
		}
		if file != nil {
			fd, err := unixTarget(file, &st)
			if err != nil {
				d.wrote(service, err)
				return nil
			}
			defer unix.Close(fd)
			if !unixTrusts(unixSender(r.control), st.Uid, service) {
				d.count(service, "refused")
				return nil
			}
			b.readdress(0, fd)
		}
		b.reply(0, answer, service, nil)
		b.flush()
		return nil
	}, nil
}

// unixSource says whether the source of a datagram can be answered. file is its
// path, with a NUL behind it; nil if its name is an abstract one. A relative
// path is of the client's directory and names another file in ours, or none.
func unixSource(name []byte, own string) (file []byte, ok bool) {
	if len(name) < 3 {
		return nil, false
	}
	path := name[2:]
	if path[0] == 0 {
		return nil, own == "" || own[0] != '@' || string(path[1:]) != own[1:]
	}
	if end := bytes.IndexByte(path, 0); end >= 0 {
		path = path[:end]
	}
	if path[0] != '/' || string(path) == own {
		return nil, false
	}
	file = path[:len(path)+1] // the slot has the room
	file[len(path)] = 0
	return file, true
}

// unixSender returns the uid that sent a datagram, datagramNobody if the kernel
// does not say: what was queued before we asked for it has none.
func unixSender(control []byte) uint32 {
	if len(control) >= unix.SizeofCmsghdr {
		h, data, _, err := unix.ParseOneSocketControlMessage(control)
		if err == nil && h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_CREDENTIALS && len(data) >= unix.SizeofUcred {
			return binary.NativeEndian.Uint32(data[4:]) // pid, uid, gid
		}
	}
	return datagramNobody
}

// unixTrusts says whether an answer of service may go to a socket file of
// owner, on the word of sender. A name can be a lie here too: bound in a mount
// namespace of one's own, it may be that of any socket outside, and echo would
// have the daemon tell the service manager, or the journal, what a stranger
// likes. So the file must be the sender's. Of an unknown sender it is not
// known, and it gets what holds no word of his. An abstract name has no owner;
// only another network namespace can lie about one.
func unixTrusts(sender, owner uint32, service string) bool {
	switch {
	case sender == datagramNobody:
		return service != "echo" && service != "upper"
	case sender == 0:
		return true
	}
	return sender == owner
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

// A datagramQuestion is a datagram with all that decides about its answer.
type datagramQuestion struct {
	text      []byte
	truncated bool
	src       netip.AddrPort
	own       uint16 // the port it was sent to
	device    uint32 // the interface it came in by, 0 if not known
	at        time.Time
}

// answer composes the answer to q and applies every rule about sources.
// Without ok there is none, and the datagram has been counted.
func (d *datagramService) answer(dst []byte, q *datagramQuestion) (answer []byte, service string, ok bool) {
	addr := q.src.Addr().Unmap()
	if !datagramSourceAllowed(addr, q.src.Port(), q.own) || d.allowed != nil && !d.allowed(addr) {
		d.count("none", "refused")
		return nil, "", false
	}
	here := addr.IsLoopback()
	if here && q.device != 0 && q.device != datagramLoopback {
		// From the wire, under a name of this machine's own: with the sysctl
		// route_localnet the kernel lets it in, and what listens on 127.0.0.1
		// alone would get the answer.
		d.count("none", "refused")
		return nil, "", false
	}
	answer, service, ok = d.compose(dst, q.text, q.truncated, q.at)
	if !ok || here {
		return answer, service, ok
	}
	if len(answer) > datagramGainFactor*len(q.text)+datagramGainHeader {
		d.count(service, "malformed") // a hello without enough padding
		return nil, "", false
	}
	if (service == "echo" || service == "upper") && datagramRepeats(answer) {
		d.count(service, "refused")
		return nil, "", false
	}
	if !d.rate.allow(addr, q.at) {
		d.count(service, "limited")
		return nil, "", false
	}
	return answer, service, true
}

// compose is answerDatagram with what no datagram may do to the others: end
// them by a panic.
func (d *datagramService) compose(dst, req []byte, truncated bool, now time.Time) (answer []byte, service string, ok bool) {
	defer func() {
		if p := recover(); p != nil {
			d.log.Error("datagram panic", "panic", p, "stack", string(debug.Stack()))
			d.count("none", "error")
			answer, service, ok = nil, "", false
		}
	}()
	if !truncated {
		answer, service = answerDatagram(dst, req, now, d.hello)
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
	word, text := datagramWord(req)
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

// datagramWord splits req after its first word.
func datagramWord(req []byte) (word, rest []byte) {
	end := 0
	for end < len(req) && !datagramSpace(req[end]) {
		end++
	}
	return req[:end], req[end:]
}

// datagramRepeats says whether an answer would have a service like this one
// send it back in turn. 60 KiB of "echo echo echo" would go to and fro ten
// thousand times.
func datagramRepeats(answer []byte) bool {
	word, _ := datagramWord(answer)
	return datagramFold(word, "echo") || datagramFold(word, "upper")
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

// slot returns the bucket of addr's network.
func (l *datagramLimiter) slot(addr netip.Addr) *atomic.Int64 {
	var network [9]byte
	if addr.Is4() {
		a := addr.As4()
		copy(network[:], a[:3])
		network[8] = 4
	} else {
		a := addr.As16()
		copy(network[:], a[:8])
	}
	return &l.full[maphash.Bytes(l.seed, network[:])%datagramSlots]
}

// allow takes one token of addr's network, if there is one.
func (l *datagramLimiter) allow(addr netip.Addr, now time.Time) bool {
	const (
		token    = int64(time.Second) / datagramRate
		capacity = datagramBurst * token
	)
	slot := l.slot(addr)
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
