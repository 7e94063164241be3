package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

// proxyBinary is a header of version 2.
func proxyBinary(command, family byte, body []byte) []byte {
	b := append([]byte{}, proxySignature...)
	b = append(b, command, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

var (
	body4 = []byte{192, 0, 2, 7, 192, 0, 2, 1, 0x9c, 0x40, 0x08, 0x49}
	body6 = slices.Concat(netip.MustParseAddr("2001:db8::7").AsSlice(), netip.MustParseAddr("2001:db8::1").AsSlice(), body4[8:])
)

// TestProxyHeader: what is read, and that not a byte behind it is.
func TestProxyHeader(t *testing.T) {
	const from4, to4 = "192.0.2.7:40000", "192.0.2.1:2121"
	long := append(slices.Clone(body4), bytes.Repeat([]byte{4}, proxyBinaryMax-len(body4))...)
	for _, c := range []struct{ name, header, from, to, wrong string }{
		{"version 1", "PROXY TCP4 192.0.2.7 192.0.2.1 40000 2121\r\n", from4, to4, ""},
		{"version 1, IPv6", "PROXY TCP6 2001:db8::7 2001:db8::1 40000 2121\r\n", "[2001:db8::7]:40000", "[2001:db8::1]:2121", ""},
		{"version 1, unknown", "PROXY UNKNOWN\r\n", "", "", ""},
		{"version 1, unknown with more", "PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", "", "", ""},
		{"version 2", string(proxyBinary(0x21, 0x11, body4)), from4, to4, ""},
		{"version 2, IPv6", string(proxyBinary(0x21, 0x21, body6)), "[2001:db8::7]:40000", "[2001:db8::1]:2121", ""},
		{"version 2, extensions", string(proxyBinary(0x21, 0x11, long)), from4, to4, ""},
		{"version 2, local", string(proxyBinary(0x20, 0x11, body4)), "", "", ""},
		{"version 2, unspecified", string(proxyBinary(0x21, 0x00, nil)), "", "", ""},
		{"version 2, a unix socket", string(proxyBinary(0x21, 0x31, make([]byte, 216))), "", "", ""},
		{"mapped", string(proxyBinary(0x21, 0x21, slices.Concat(netip.MustParseAddr("::ffff:192.0.2.7").AsSlice(), body6[16:]))), from4, "[2001:db8::1]:2121", ""},

		{"FTP", "USER ann\r\nPASS x\r\n", "", "", "no PROXY protocol header"},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03...", "", "", "no PROXY protocol header"},
		{"nothing", "", "", "", "no PROXY protocol header"},
		{"a part", "PROXY TCP4", "", "", "no PROXY protocol header"},
		{"a part of the addresses", "PROXY TCP4 192.0.2.7 ", "", "", "PROXY header"},
		{"no end", "PROXY TCP4 " + strings.Repeat("1", 200), "", "", "no line end within 107 bytes"},
		{"no addresses", "PROXY TCP4 a b c d\r\n", "", "", "is not PROXY TCP4"},
		{"the wrong family", "PROXY TCP6 192.0.2.7 192.0.2.1 40000 2121\r\n", "", "", "is not PROXY TCP4"},
		{"a zone", "PROXY TCP6 fe80::1%eth0 2001:db8::1 40000 2121\r\n", "", "", "is not PROXY TCP4"},
		{"a port too high", "PROXY TCP4 192.0.2.7 192.0.2.1 65536 2121\r\n", "", "", "is not PROXY TCP4"},
		{"two spaces", "PROXY TCP4  192.0.2.7 192.0.2.1 40000 2121\r\n", "", "", "is not PROXY TCP4"},
		{"version 3", string(proxyBinary(0x31, 0x11, body4)), "", "", "version 3"},
		{"another command", string(proxyBinary(0x22, 0x11, body4)), "", "", "command 2"},
		{"too short for its family", string(proxyBinary(0x21, 0x11, body4[:11])), "", "", "too few"},
		{"too long", string(append(proxyBinary(0x21, 0x11, nil)[:14], 0xff, 0xff)), "", "", "65535 bytes long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			here, there := net.Pipe()
			go func() {
				io.WriteString(there, c.header)
				if c.wrong == "" {
					io.WriteString(there, "USER ann\r\n")
				}
				there.Close()
			}()
			defer here.Close()
			p, err := readProxyHeader(here)
			if c.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), c.wrong) {
					t.Errorf("%+v, %v; want %q", p, err, c.wrong)
				}
				return
			}
			show := func(a netip.AddrPort) string {
				if !a.IsValid() {
					return ""
				}
				return a.String()
			}
			if err != nil || show(p.from) != c.from || show(p.to) != c.to {
				t.Errorf("from %v to %v, %v; want %s, %s", p.from, p.to, err, c.from, c.to)
			}
			if rest, _ := io.ReadAll(here); string(rest) != "USER ann\r\n" {
				t.Errorf("behind it: %q", rest)
			}
		})
	}
}

// TestProxySilence: who sends nothing does not hold a place for ever.
func TestProxySilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer there.Close()
		if _, err := readProxyHeader(here); !errors.Is(err, errNoProxyHeader) {
			t.Error(err)
		}
	})
}

func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.7 192.0.2.1 40000 2121\r\nUSER"))
	f.Add(proxyBinary(0x21, 0x11, body4))
	f.Add(proxyBinary(0x21, 0x21, body6))
	f.Fuzz(func(t *testing.T, data []byte) {
		here, there := net.Pipe()
		go func() { there.Write(data); there.Close() }()
		p, err := readProxyHeader(here)
		if err != nil && p != (proxied{}) {
			t.Errorf("%+v with %v", p, err)
		}
		if p.from.Addr().Is4In6() || p.from.Addr().Zone() != "" || p.from.IsValid() != p.to.IsValid() {
			t.Errorf("%+v", p)
		}
		here.Close()
	})
}

// proxiedListen is realListen behind a proxy at 127.0.0.2.
const proxiedListen = "limits.data_timeout = \"15s\"\nserver.drain = \"5s\"\ntls.require = \"none\"\n" +
	"listen = { control = [\"127.0.0.1:0\"], datagram = [], http = [], local = [], proxy_from = [\"127.0.0.2\"] }\n"

// TestProxyOnTheWire: behind a proxy the client's own address is what filters, bans
// and the log see, and what PASV tells is where the client came in.
func TestProxyOnTheWire(t *testing.T) {
	b := newFTPBox(t, proxiedListen+"filter.deny_from = [\"192.0.2.66\"]\n", "")
	addr := b.serveReal(t)[0]
	through := func(header string) *ftpClient {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
		conn, err := d.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		io.WriteString(conn, header)
		return &ftpClient{t: t, box: b, bare: conn, conn: conn, r: bufio.NewReader(conn)}
	}
	c := through("PROXY TCP4 192.0.2.7 198.51.100.1 40000 21\r\n")
	c.login()
	if who := b.srv.who(); len(who) != 1 || who[0].Address != "192.0.2.7" {
		t.Errorf("%+v", who)
	}
	c.cmd("PASV", "227 Entering Passive Mode (198,51,100,1,*")

	denied := through("PROXY TCP4 192.0.2.66 198.51.100.1 40000 21\r\n")
	denied.want("421 *")
	// No header, no service; and the header of somebody else is a line like any other.
	if line, err := through("USER ann\r\nPASS x\r\n").line(replyTime); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%q, %v", line, err)
	}
	other := b.dialReal(t, addr)
	other.want("220 *")
	other.send("PROXY TCP4 192.0.2.7 198.51.100.1 40000 21\r\n")
	other.want("500 *")
}

// TestProxyData: a data connection through the proxy is its client's by the header.
func TestProxyData(t *testing.T) {
	b := newFTPBox(t, proxiedListen, "")
	addr := b.serveReal(t)[0]
	b.put(t, "f", "content")
	dial := func(port int, header string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
		conn, err := d.Dial("tcp", (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		io.WriteString(conn, header)
		return conn
	}
	conn := dial(addr.(*net.TCPAddr).Port, "PROXY TCP4 192.0.2.7 198.51.100.1 40000 21\r\n")
	c := &ftpClient{t: t, box: b, bare: conn, conn: conn, r: bufio.NewReader(conn)}
	c.login()
	c.cmd("EPSV", "229 *")
	port := int(c.port)
	thief := dial(port, "PROXY TCP4 192.0.2.8 198.51.100.1 40001 21\r\n")
	c.send("RETR f\r\n")
	if got, _ := io.ReadAll(thief); len(got) != 0 {
		t.Errorf("somebody else got %q", got)
	}
	own := dial(port, "PROXY TCP4 192.0.2.7 198.51.100.1 40002 21\r\n")
	c.want("150 *")
	if got, _ := io.ReadAll(own); string(got) != "content" {
		t.Errorf("got %q", got)
	}
	c.want("226 *")
}
