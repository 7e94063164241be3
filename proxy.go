// proxy.go reads the header that a load balancer or a container's gateway puts
// before a connection to say who is behind it: the PROXY protocol, versions 1 and
// 2 (haproxy's proxy-protocol.txt). It is apart from session.go along a line of
// trust: what it returns stands for an address in filters, bans and the log, so it
// is asked only for connections from the networks of listen.proxy_from, and these
// must begin with a header: who guesses whether there is one believes strangers.

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

const (
	// proxyTimeout is how long the header may take. It is sent before all else and
	// fits into one segment; the specification asks for 3 s or more, for one that
	// has to be sent again.
	proxyTimeout = 5 * time.Second

	// proxyLineMax is the longest header of version 1, CRLF included (section 2.1).
	proxyLineMax = 107

	// proxyBinaryMax bounds a header of version 2. The addresses take 36 bytes or,
	// for unix sockets, 216; the rest are extensions, which nobody here reads.
	proxyBinaryMax = 4 << 10

	proxyBinaryHead = 16 // signature, version and command, family, length (section 2.2)
)

// proxySignature begins a header of version 2; no line of FTP, and no TLS record,
// begins so.
var proxySignature = []byte("\r\n\r\n\x00\r\nQUIT\n")

// errNoProxyHeader is what a connection gets that should have begun with one.
var errNoProxyHeader = errors.New("no PROXY protocol header came first; have the proxy send one (send-proxy, send-proxy-v2), or take its address out of listen.proxy_from")

// A proxied is what a header says. Both addresses are invalid where it tells none,
// as for a proxy's own health checks: the connection is the proxy's then.
type proxied struct {
	from, to netip.AddrPort
}

// readProxyHeader reads exactly one header from the start of c and leaves what is
// behind it.
func readProxyHeader(c net.Conn) (proxied, error) {
	c.SetReadDeadline(time.Now().Add(proxyTimeout))
	defer c.SetReadDeadline(time.Time{})
	// As much as each version has, the shortest of all being "PROXY UNKNOWN\r\n".
	head := make([]byte, len(proxySignature), proxyLineMax)
	if _, err := io.ReadFull(c, head); err != nil {
		return proxied{}, errorf("%w (%w)", errNoProxyHeader, err)
	}
	if bytes.Equal(head, proxySignature) {
		return readProxyBinary(c)
	}
	if !bytes.HasPrefix(head, []byte("PROXY ")) {
		return proxied{}, errNoProxyHeader
	}
	for !bytes.HasSuffix(head, []byte("\r\n")) {
		if len(head) == proxyLineMax {
			return proxied{}, errorf("PROXY header: no line end within %d bytes", proxyLineMax)
		}
		head = head[:len(head)+1] // byte by byte: what is behind it is not ours
		if _, err := io.ReadFull(c, head[len(head)-1:]); err != nil {
			return proxied{}, errorf("PROXY header: %w", err)
		}
	}
	return parseProxyLine(string(head[:len(head)-2]))
}

// parseProxyLine reads a header of version 1 without its line end.
func parseProxyLine(line string) (proxied, error) {
	fields := strings.Split(line, " ")
	if len(fields) >= 2 && fields[1] == "UNKNOWN" { // whatever else stands there
		return proxied{}, nil
	}
	bad := errorf("PROXY header: %.120q is not PROXY TCP4 or TCP6, two addresses and two ports", line)
	if len(fields) != 6 {
		return proxied{}, bad
	}
	var p proxied
	for i, to := range []*netip.AddrPort{&p.from, &p.to} {
		a, err := netip.ParseAddr(fields[2+i])
		port, perr := strconv.ParseUint(fields[4+i], 10, 16)
		if err != nil || perr != nil || a.Zone() != "" || !(fields[1] == "TCP4" && a.Is4() || fields[1] == "TCP6" && a.Is6()) {
			return proxied{}, bad
		}
		*to = netip.AddrPortFrom(a.Unmap(), uint16(port))
	}
	return p, nil
}

// readProxyBinary reads what is behind the signature of version 2.
func readProxyBinary(c net.Conn) (proxied, error) {
	var head [proxyBinaryHead - 12]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return proxied{}, errorf("PROXY header: %w", err)
	}
	n := int(binary.BigEndian.Uint16(head[2:]))
	if n > proxyBinaryMax {
		return proxied{}, errorf("PROXY header: %d bytes long; at most %d are read", n, proxyBinaryMax)
	}
	rest := make([]byte, n)
	if _, err := io.ReadFull(c, rest); err != nil {
		return proxied{}, errorf("PROXY header: %w", err)
	}
	return parseProxyBinary(head[0], head[1], rest)
}

// parseProxyBinary reads version and command, family, and what is behind them.
func parseProxyBinary(command, family byte, rest []byte) (proxied, error) {
	switch {
	case command>>4 != 2:
		return proxied{}, errorf("PROXY header: version %d; 1 and 2 are known", command>>4)
	case command&0xf == 0: // LOCAL: the proxy itself, asking whether we are well
		return proxied{}, nil
	case command&0xf != 1: // else PROXY
		return proxied{}, errorf("PROXY header: command %d is not known", command&0xf)
	}
	size := 0
	switch family {
	case 0x11: // TCP over IPv4
		size = 4
	case 0x21: // TCP over IPv6
		size = 16
	default:
		return proxied{}, nil // unspecified, or none that is of use here
	}
	if len(rest) < 2*size+4 {
		return proxied{}, errorf("PROXY header: %d bytes are too few for two addresses", len(rest))
	}
	from, _ := netip.AddrFromSlice(rest[:size])
	to, _ := netip.AddrFromSlice(rest[size : 2*size])
	ports := rest[2*size:]
	return proxied{netip.AddrPortFrom(from.Unmap(), binary.BigEndian.Uint16(ports)),
		netip.AddrPortFrom(to.Unmap(), binary.BigEndian.Uint16(ports[2:]))}, nil
}

// proxiedBy tells whether connections from a begin with a header.
func (l *listenConfig) proxiedBy(a netip.Addr) bool {
	for _, n := range l.ProxyFrom {
		if n.contains(a) {
			return true
		}
	}
	return false
}
