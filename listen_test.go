// These tests are about listeners: those that the daemon opens itself, in this process,
// and those that it inherits, which only a process of its own can. A socket is looked
// at from both sides: what the kernel says of it, and who can connect.

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shortDir is a directory whose name leaves room for a socket's: the test's own may be
// longer than sockaddr_un is.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// --- inherited ---

// A given is a socket as systemd passes it: open in this process too, as in systemd.
type given struct {
	name    string
	network string
	file    *os.File
	addr    string
}

var gifts atomic.Int32

// give makes one. Paths of unix sockets are below dir.
func give(t *testing.T, dir, name, network string) *given {
	t.Helper()
	g := &given{name: name, network: network}
	path := filepath.Join(dir, fmt.Sprintf("given-%s-%d", name, gifts.Add(1)))
	var c interface {
		File() (*os.File, error)
		io.Closer
	}
	var err error
	switch network {
	case "tcp":
		var ln net.Listener
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err == nil {
			g.addr, c = ln.Addr().String(), ln.(*net.TCPListener)
		}
	case "udp":
		var pc net.PacketConn
		if pc, err = net.ListenPacket("udp", "127.0.0.1:0"); err == nil {
			g.addr, c = pc.LocalAddr().String(), pc.(*net.UDPConn)
		}
	case "unix":
		g.addr = path
		var ln *net.UnixListener
		if ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: g.addr, Net: "unix"}); err == nil {
			ln.SetUnlinkOnClose(false)
			c = ln
		}
	case "unixgram":
		g.addr = path
		c, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: g.addr, Net: "unixgram"})
	}
	if err == nil {
		g.file, err = c.File()
		c.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.file.Close() })
	return g
}

// noRaceSleep has a process of its own end at once under the race detector, which else
// sleeps for a second first.
const noRaceSleep = "GORACE=atexit_sleep_ms=0"

// passed is the environment and the descriptors that systemd starts the daemon with.
func passed(all ...*given) (env []string, files []*os.File) {
	var names []string
	for _, g := range all {
		names = append(names, g.name)
		files = append(files, g.file)
	}
	return []string{fmt.Sprintf("LISTEN_FDS=%d", len(all)), "LISTEN_FDNAMES=" + strings.Join(names, ":"), noRaceSleep}, files
}

// answers checks that the daemon serves there what kind promises.
func answers(t *testing.T, kind, network, addr string) {
	t.Helper()
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s %s: %v", kind, addr, err)
		}
	}
	var d net.Dialer
	if network == "unixgram" {
		name := addr + "-asks" // it is where the answer goes
		d.LocalAddr = &net.UnixAddr{Name: name, Net: "unixgram"}
		defer os.Remove(name)
	}
	c, err := d.Dial(network, addr)
	if err != nil {
		fail(err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(replyTime))
	greeted := func(c net.Conn) error {
		line, err := bufio.NewReader(c).ReadString('\n')
		if err == nil && !strings.HasPrefix(line, "220 ") {
			err = fmt.Errorf("it says %q", line)
		}
		return err
	}
	switch kind {
	case "control", "local":
		fail(greeted(c))
	case "tls":
		fail(greeted(tls.Client(c, clientTLS())))
	case "datagram", "local-datagram":
		io.WriteString(c, "time")
		answer := make([]byte, 100)
		n, err := c.Read(answer)
		if fail(err); err == nil && n < 4 {
			t.Errorf("%s %s: answer %q", kind, addr, answer[:n])
		}
	case "http":
		io.WriteString(c, "GET /healthz HTTP/1.0\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if fail(err); err == nil {
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("http %s: %s", addr, resp.Status)
			}
		}
	}
}

// Sockets of all kinds come at once, in any order, several to a name. Of the names that
// came nothing is opened: the configured addresses are such as cannot be had, so the
// start would fail. Of the others everything is.
func TestInheritEveryKind(t *testing.T) {
	t.Parallel()
	kinds := []struct{ name, network string }{
		{"local-datagram", "unixgram"}, {"control", "tcp"}, {"datagram", "udp"}, {"local", "unix"}, {"http", "tcp"}, {"datagram", "udp"}, {"tls", "tcp"}, {"control", "tcp"}, {"local", "unix"},
	}
	for _, test := range []struct {
		name, own string // what is not given
		backward  bool
	}{
		{"http is configured", "http", false}, {"local is configured", "local", true}, {"datagrams are configured", "datagram local-datagram", false}, {"all are given", "", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := shortDir(t)
			isOwn := func(kind string) bool { return slices.Contains(strings.Fields(test.own), kind) }
			var all []*given
			networks := map[string]string{}
			for _, kind := range kinds {
				if networks[kind.name] = kind.network; !isOwn(kind.name) {
					all = append(all, give(t, dir, kind.name, kind.network))
				}
			}
			if test.backward {
				slices.Reverse(all)
			}
			tcp, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer tcp.Close()
			udp, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer udp.Close()
			precious := filepath.Join(dir, "precious")
			for _, path := range []string{precious, precious + "2"} {
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			// What is not to be opened has an address that somebody else has, or nobody here.
			listen := map[string]string{"control": tcp.Addr().String(), "datagram": udp.LocalAddr().String(), "local": precious, "local-datagram": precious + "2",
				"tls": "192.0.2.1:2121", "http": "192.0.2.1:2122"}
			for _, kind := range strings.Fields(test.own) {
				if listen[kind] = "127.0.0.1:0"; strings.HasPrefix(kind, "local") {
					listen[kind] = filepath.Join(dir, "own-"+kind)
				}
			}
			file, _ := writeConfig(t, fmt.Sprintf("log.format = \"json\"\nlisten = { control = [%q], datagram = [%q], local = [%q], local_datagram = [%q], tls = [%q], http = [%q] }\n",
				listen["control"], listen["datagram"], listen["local"], listen["local-datagram"], listen["tls"], listen["http"]))
			env, files := passed(all...)
			p := startBerth(t, env, files, "serve", "--config", file)
			line := p.logged("serving")
			var own int
			for _, l := range strings.Fields(line["listeners"].(string)) {
				kind, addr, _ := strings.Cut(l, "=")
				if isOwn(kind) {
					own++
					answers(t, kind, networks[kind], addr)
				}
			}
			if n := len(strings.Fields(line["listeners"].(string))); own != len(strings.Fields(test.own)) || n != own+len(all) {
				t.Errorf("%d listeners, %d of them the daemon's own: %s", n, own, line["listeners"])
			}
			for _, g := range all {
				answers(t, g.name, g.network, g.addr)
			}
			p.signal(syscall.SIGTERM)
			p.ended(exitOK)
			for _, g := range all {
				if c, err := net.Dial(g.network, g.addr); err != nil {
					t.Errorf("%s %s does not outlive the daemon: %v", g.name, g.addr, err)
				} else {
					c.Close()
				}
			}
			for _, kind := range []string{"local", "local-datagram"} {
				if _, err := os.Lstat(filepath.Join(dir, "own-"+kind)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the daemon's own %s is left behind: %v", kind, err)
				}
			}
			for _, path := range []string{precious, precious + "2"} {
				if st, err := os.Lstat(path); err != nil || !st.Mode().IsRegular() {
					t.Errorf("%s: %v, %v", path, st, err)
				}
			}
		})
	}
}

// mptcpFile is a listener as SocketProtocol=mptcp makes it.
func mptcpFile(t *testing.T) *os.File {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if n, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || n != unix.IPPROTO_MPTCP {
		t.Skip("this kernel has no MPTCP")
	}
	return f
}

// What is not what its name says stops the start, with a sentence and exit code 1,
// whatever else came with it. Nothing has been opened then, and nothing is left behind.
func TestInheritRefused(t *testing.T) {
	t.Parallel()
	file := func(t *testing.T, of *given) *os.File { return of.file }
	of := func(network string) func(t *testing.T, dir string) *os.File {
		return func(t *testing.T, dir string) *os.File { return file(t, give(t, dir, "wrong", network)) }
	}
	connected := func(network string) func(t *testing.T, dir string) *os.File { // Accept=yes
		return func(t *testing.T, dir string) *os.File {
			g := give(t, dir, "wrong", network)
			c, err := net.Dial(network, g.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			f, err := c.(interface{ File() (*os.File, error) }).File()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			return f
		}
	}
	plain := func(open func(dir string) (*os.File, error)) func(t *testing.T, dir string) *os.File {
		return func(t *testing.T, dir string) *os.File {
			f, err := open(dir)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			return f
		}
	}
	for _, test := range []struct {
		what, name string
		file       func(t *testing.T, dir string) *os.File
		says       string
	}{
		{"unknown name", "ftp", of("tcp"), `a socket named "ftp"; FileDescriptorName= of its unit must be control or tls or datagram or local or local-datagram or http`},
		{"a unit's name", "berth.socket", of("tcp"), `a socket named "berth.socket"; FileDescriptorName=`},
		{"the key's spelling", "local_datagram", of("unixgram"), `a socket named "local_datagram"; FileDescriptorName=`},
		{"empty name", "", of("tcp"), `a socket named "LISTEN_FD_4"; FileDescriptorName=`},
		{"tcp for datagram", "datagram", of("tcp"), `as "datagram" a TCP socket; that name needs a UDP socket with a port: write ListenDatagram=2121`},
		{"udp for control", "control", of("udp"), `as "control" a UDP socket; that name needs a TCP socket with a port: write ListenStream=2121`},
		{"unix for control", "control", of("unix"), `as "control" a unix stream socket; that name needs a TCP socket`},
		{"unix for tls", "tls", of("unixgram"), `as "tls" a unix datagram socket; that name needs a TCP socket`},
		{"tcp for local", "local", of("tcp"), `as "local" a TCP socket; that name needs a unix stream socket with a path: write ListenStream=/run/berth/berth.sock`},
		{"unixgram for local", "local", of("unixgram"), `as "local" a unix datagram socket; that name needs a unix stream socket`},
		{"unix for local-datagram", "local-datagram", of("unix"), `as "local-datagram" a unix stream socket; that name needs a unix datagram socket with a path: write ListenDatagram=`},
		{"udp for http", "http", of("udp"), `as "http" a UDP socket; that name needs a TCP socket`},
		{"a connection for control", "control", connected("tcp"), `as "control" a connection and no listener; its unit needs Accept=no`},
		{"a connection for local", "local", connected("unix"), `as "local" a connection and no listener; its unit needs Accept=no`},
		{"MPTCP", "control", func(t *testing.T, dir string) *os.File { return mptcpFile(t) }, `as "control" an MPTCP socket, which the rules for ports of the sandbox do not see; remove SocketProtocol=mptcp`},
		{"a file", "control", plain(func(dir string) (*os.File, error) { return os.Create(filepath.Join(dir, "file")) }), `as "control" what is no socket`},
		{"a netlink socket", "datagram", plain(func(string) (*os.File, error) {
			fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			return os.NewFile(uintptr(fd), "netlink"), err
		}), `as "datagram" a socket of another kind; that name needs a UDP socket`},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			dir := shortDir(t)
			local := filepath.Join(dir, "own.sock")
			config, _ := writeConfig(t, fmt.Sprintf("log.format = \"json\"\nlisten = { control = [\"127.0.0.1:0\"], datagram = [], http = [], local = [%q] }\n", local))
			first, last := give(t, dir, "tls", "tcp"), give(t, dir, "local", "unix")
			wrong := &given{name: test.name, file: test.file(t, dir)}
			env, files := passed(first, wrong, last)
			before, err := filepath.Glob(filepath.Join(dir, "*"))
			if err != nil {
				t.Fatal(err)
			}
			p := startBerth(t, env, files, "serve", "--config", config)
			p.ended(exitFailed)
			if got := p.rest.String(); !strings.HasPrefix(got, "berth serve: systemd passed ") || !strings.Contains(got, test.says) || strings.Count(got, "\n") != 1 {
				t.Errorf("it says %q; want %q", got, test.says)
			}
			if after, _ := filepath.Glob(filepath.Join(dir, "*")); strings.Join(after, " ") != strings.Join(before, " ") {
				t.Errorf("before: %q; after: %q", before, after)
			}
		})
	}
	// No names at all, as from a supervisor that knows LISTEN_FDS alone.
	t.Run("no LISTEN_FDNAMES", func(t *testing.T) {
		t.Parallel()
		config, _ := writeConfig(t, daemonListen)
		p := startBerth(t, []string{"LISTEN_FDS=1"}, []*os.File{give(t, "", "", "tcp").file}, "serve", "--config", config)
		p.ended(exitFailed)
		if got := p.rest.String(); !strings.Contains(got, "FileDescriptorName= of its unit must be control or") {
			t.Errorf("it says %q", got)
		}
	})
}

// --- opened ---

// openTest opens the sockets of a configuration, which is empty but for what edit adds.
func openTest(t *testing.T, edit func(l *listenConfig)) ([]socket, error) {
	t.Helper()
	l := listenConfig{LocalMode: defaultConfig().Listen.LocalMode}
	edit(&l)
	all, err := openSockets(context.Background(), &l, false, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		for _, k := range all {
			k.close()
		}
	})
	return all, err
}

func mustOpen(t *testing.T, edit func(l *listenConfig)) []socket {
	t.Helper()
	all, err := openTest(t, edit)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// sockopt asks the kernel about a listener.
func (k socket) sockopt(t *testing.T, level, name int) (n int) {
	t.Helper()
	var c any = k.packet
	if k.stream != nil {
		c = k.stream
	}
	if err := onDescriptor(c, func(fd int) (err error) { n, err = unix.GetsockoptInt(fd, level, name); return err }); err != nil {
		t.Fatal(err)
	}
	return n
}

func needIPv6(t *testing.T) {
	t.Helper()
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6:", err)
	}
	ln.Close()
}

// freePort is one that nobody has, of either protocol and family.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := int(freePorts(t, 1).Low)
		pc, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err == nil {
			pc.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// reaches tells whether a client of that loopback address gets to the listener.
func (k socket) reaches(t *testing.T, from string) bool {
	t.Helper()
	port := addrPort(k.addr())
	if k.stream != nil {
		c, err := net.Dial("tcp", net.JoinHostPort(from, port))
		if err != nil {
			return false
		}
		c.Close()
		return true
	}
	c, err := net.Dial("udp", net.JoinHostPort(from, port))
	if err != nil {
		return false
	}
	defer c.Close()
	io.WriteString(c, "x")
	// Loopback delivers at once: what is not there now does not come, and where nobody
	// listens the next call says so.
	_, err = io.WriteString(c, "x")
	return err == nil
}

func addrPort(a net.Addr) string {
	_, port, _ := net.SplitHostPort(a.String())
	return port
}

// An address means what it says, for TCP and UDP.
func TestListenFamilies(t *testing.T) {
	t.Parallel()
	needIPv6(t)
	for _, test := range []struct {
		addr   string
		only   bool
		four   bool
		six    bool
		domain int
	}{
		{"0.0.0.0:0", false, true, false, unix.AF_INET},
		{"0.0.0.0:0", true, true, false, unix.AF_INET},
		{"[::]:0", false, true, true, unix.AF_INET6},
		{"[::]:0", true, false, true, unix.AF_INET6},
		{":0", false, true, true, unix.AF_INET6},
		{":0", true, false, true, unix.AF_INET6},
		{"[::1]:0", false, false, true, unix.AF_INET6},
		{"127.0.0.1:0", false, true, false, unix.AF_INET},
		{"127.0.0.1:0", true, true, false, unix.AF_INET},
		{"[::ffff:127.0.0.1]:0", false, true, false, unix.AF_INET},
		{"[::ffff:0.0.0.0]:0", true, true, false, unix.AF_INET},
	} {
		// The port is free in the family of the listener; in the other one somebody else may have it, and answer.
		var wrong []string
		for range 5 {
			wrong = nil
			for _, k := range mustOpen(t, func(l *listenConfig) {
				l.Control, l.Datagram, l.IPv6Only = []string{test.addr}, []string{test.addr}, test.only
			}) {
				got := [...]any{k.sockopt(t, unix.SOL_SOCKET, unix.SO_DOMAIN), k.reaches(t, "127.0.0.1"), k.reaches(t, "::1")}
				if want := [...]any{test.domain, test.four, test.six}; got != want {
					wrong = append(wrong, fmt.Sprintf("%s %s, ipv6_only %v: domain, IPv4 and IPv6 are %v; want %v", k.kind, test.addr, test.only, got, want))
				}
			}
			if wrong == nil {
				break
			}
		}
		for _, text := range wrong {
			t.Error(text)
		}
	}
}

// Both families beside each other, with one port: whoever writes 0.0.0.0 and [::] wants
// both, and the kernel would refuse the second.
func TestListenBothFamilies(t *testing.T) {
	t.Parallel()
	needIPv6(t)
	for _, hosts := range [][]string{{"0.0.0.0", "[::]"}, {"[::]", "0.0.0.0"}, {"", "0.0.0.0"}} {
		var all []socket
		for try := range 5 { // another program may be faster
			port := freePort(t)
			addrs := []string{fmt.Sprintf("%s:%d", hosts[0], port), fmt.Sprintf("%s:%d", hosts[1], port)}
			var err error
			if all, err = openTest(t, func(l *listenConfig) { l.Control, l.Datagram = addrs, addrs }); err == nil {
				break
			} else if try == 4 {
				t.Fatalf("%q: %v", hosts, err)
			}
		}
		if len(all) != 4 {
			t.Fatalf("%q: %d sockets", hosts, len(all))
		}
		for _, k := range all {
			want := k.sockopt(t, unix.SOL_SOCKET, unix.SO_DOMAIN)
			if want == unix.AF_INET6 && k.sockopt(t, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY) != 1 {
				t.Errorf("%q: %s takes IPv4 too", hosts, k.addr())
			}
		}
	}
	// With another port they have nothing to do with each other.
	all := mustOpen(t, func(l *listenConfig) { l.Control = []string{"0.0.0.0:0", "[::]:0"} })
	if !all[1].reaches(t, "127.0.0.1") {
		t.Error("[::] beside 0.0.0.0 with another port takes IPv6 alone")
	}
	// The other protocol's 0.0.0.0 has nothing to do with it either.
	port := freePort(t)
	all, err := openTest(t, func(l *listenConfig) {
		l.Control, l.Datagram = []string{fmt.Sprintf("[::]:%d", port)}, []string{fmt.Sprintf("0.0.0.0:%d", port)}
	})
	if err == nil && !all[0].reaches(t, "127.0.0.1") {
		t.Error("[::] for control takes IPv6 alone, for a datagram socket's sake")
	}
}

// waiting is how many connections a listener's queue takes: tcpi_sacked, for a listener
// (tcp_diag(7) tells the same as Send-Q).
func (k socket) waiting(t *testing.T) (n int) {
	t.Helper()
	if err := onDescriptor(k.stream, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			n = int(info.Sacked)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestListenOptions(t *testing.T) {
	t.Parallel()
	some := func(l *listenConfig) {
		l.Control, l.TLS, l.HTTP = []string{"127.0.0.1:0", "[::]:0"}, []string{"127.0.0.1:0"}, []string{"127.0.0.1:0"}
	}
	most, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range mustOpen(t, some) {
		if got := k.sockopt(t, unix.SOL_SOCKET, unix.SO_PROTOCOL); got != unix.IPPROTO_TCP {
			t.Errorf("%s: protocol %d, which Landlock's rules for ports do not see", k.kind, got)
		}
		if got := k.sockopt(t, unix.SOL_SOCKET, unix.SO_REUSEADDR); got != 1 {
			t.Errorf("%s: SO_REUSEADDR %d; a restart would have to wait for TIME_WAIT", k.kind, got)
		}
		if got := fmt.Sprint(k.waiting(t)); got != strings.TrimSpace(string(most)) {
			t.Errorf("%s: %s may wait; want %s", k.kind, got, most)
		}
	}
	for _, k := range mustOpen(t, func(l *listenConfig) { some(l); l.Backlog = 7 }) {
		if got := k.waiting(t); got != 7 {
			t.Errorf("%s: %d may wait; want 7", k.kind, got)
		}
	}
	// Two daemons on one port would each get some of the clients.
	for _, k := range mustOpen(t, func(l *listenConfig) { some(l); l.Datagram = []string{"127.0.0.1:0"} }) {
		if got := k.sockopt(t, unix.SOL_SOCKET, unix.SO_REUSEPORT); got != 0 {
			t.Errorf("%s: SO_REUSEPORT", k.kind)
		}
	}
}

// A unix socket's queue is as long as the others': the kernel refuses who comes when it
// is full.
func TestListenLocalBacklog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	mustOpen(t, func(l *listenConfig) { l.Local, l.Backlog = []string{path}, 3 })
	for n := range 10 {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			if !errors.Is(err, syscall.EAGAIN) || n != 4 { // unix(7): one more than it says
				t.Errorf("connection %d: %v; 3 and one more may wait", n+1, err)
			}
			return
		}
	}
	t.Error("ten connections wait where 3 may")
}

func TestListenDatagramBuffer(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	open := func(n byteSize) []socket { // 0: what the system gives
		return mustOpen(t, func(l *listenConfig) {
			l.Datagram, l.LocalDatagram, l.DatagramBuffer = []string{"127.0.0.1:0"}, []string{fmt.Sprint(path, n)}, n
		})
	}
	own := open(0)
	for i, k := range open(40000) {
		if got, own := k.sockopt(t, unix.SOL_SOCKET, unix.SO_RCVBUF), own[i].sockopt(t, unix.SOL_SOCKET, unix.SO_RCVBUF); got != 80000 || got == own { // socket(7): the kernel doubles it
			t.Errorf("%s: buffer of %d; by itself %d", k.kind, got, own)
		}
	}
}

// --- unix sockets ---

func TestListenLocalFiles(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	name := func(s string) string { return filepath.Join(dir, s) }
	for _, test := range []struct {
		mode  os.FileMode
		group string
		gid   int
	}{{0o666, "", os.Getgid()}, {0o660, "", os.Getgid()}, {0o600, fmt.Sprint(os.Getgid()), os.Getgid()}, {0o660, "54321", 54321}, {0o666, "root", 0}} {
		if test.gid != os.Getgid() && os.Getuid() != 0 {
			continue
		}
		all := mustOpen(t, func(l *listenConfig) {
			// Their directory is made, too.
			l.Local, l.LocalDatagram = []string{name("new/deep/s")}, []string{name("other/d")}
			l.LocalMode, l.LocalGroup = fileMode(test.mode), test.group
		})
		for _, path := range []string{name("new/deep/s"), name("other/d")} {
			st, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			if got := st.Mode(); got != os.ModeSocket|test.mode {
				t.Errorf("%s: mode %v; want %v", path, got, test.mode)
			}
			if got := int(st.Sys().(*syscall.Stat_t).Gid); got != test.gid {
				t.Errorf("%s: group %d; want %d", path, got, test.gid)
			}
		}
		for _, k := range all { // the end of a daemon leaves no file
			k.close()
			if _, err := os.Lstat(k.addr().String()); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s %s is left behind: %v", k.kind, k.addr(), err)
			}
		}
	}
}

func TestListenLocalGroupUnknown(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s")
	_, err := openTest(t, func(l *listenConfig) { l.Local, l.LocalGroup = []string{path}, "no-such-group" })
	if want := `listen.local: listen.local_group: there is no group "no-such-group"; make it with groupadd --system, or write another`; err == nil || err.Error() != want {
		t.Errorf("%v; want %s", err, want)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

// A file in the way is removed only if it is a socket that nobody has any more.
func TestListenLocalStale(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"unix", "unixgram"} {
		for _, test := range []struct {
			what string
			make func(t *testing.T, path string) error
			says string
		}{
			{"left behind", func(t *testing.T, path string) error { return syscall.Mknod(path, syscall.S_IFSOCK|0o600, 0) }, ""},
			{"no socket", func(t *testing.T, path string) error { return os.WriteFile(path, []byte("precious"), 0o600) }, "exists and is no socket"},
			{"a directory", func(t *testing.T, path string) error { return os.Mkdir(path, 0o700) }, "exists and is no socket"},
			{"a link", func(t *testing.T, path string) error { return os.Symlink("/dev/null", path) }, "exists and is no socket"},
			{"another daemon's", func(t *testing.T, path string) error {
				ln, err := net.Listen("unix", path)
				if err == nil {
					t.Cleanup(func() { ln.Close() })
				}
				return err
			}, "another program"},
			{"another's, of datagrams", func(t *testing.T, path string) error {
				pc, err := net.ListenPacket("unixgram", path)
				if err == nil {
					t.Cleanup(func() { pc.Close() })
				}
				return err
			}, "another program"},
			{"another's, whose queue is full", func(t *testing.T, path string) error {
				fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err == nil {
					t.Cleanup(func() { unix.Close(fd) })
					err = errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0))
				}
				if err == nil {
					var c net.Conn
					if c, err = net.Dial("unix", path); err == nil {
						t.Cleanup(func() { c.Close() })
					}
				}
				return err
			}, "another program"},
		} {
			dir := shortDir(t)
			path := filepath.Join(dir, "s")
			if err := test.make(t, path); err != nil {
				t.Fatal(test.what, err)
			}
			before, _ := os.Lstat(path)
			all, err := openTest(t, func(l *listenConfig) {
				if network == "unix" {
					l.Local = []string{path}
				} else {
					l.LocalDatagram = []string{path}
				}
			})
			after, lerr := os.Lstat(path)
			if test.says == "" {
				if err != nil || len(all) != 1 {
					t.Errorf("%s, %s: %v", network, test.what, err)
				}
				continue
			}
			if err == nil || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s, %s: %v; want %q", network, test.what, err, test.says)
			}
			if lerr != nil || !os.SameFile(before, after) {
				t.Errorf("%s, %s: it is gone: %v", network, test.what, lerr)
			}
		}
	}
}

// --- what cannot be had ---

func TestListenHints(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, test := range []struct {
		edit func(l *listenConfig)
		says []string
	}{
		{func(l *listenConfig) { l.Control = []string{taken.Addr().String()} }, []string{"listen.control: ", taken.Addr().String(), "in use; another program has it: see ss -tulnp"}},
		{func(l *listenConfig) { l.Datagram = []string{udp.LocalAddr().String()} }, []string{"listen.datagram: ", udp.LocalAddr().String(), "in use; another program has it: see ss -tulnp"}},
		{func(l *listenConfig) { l.TLS = []string{"192.0.2.1:0"} }, []string{"listen.tls: ", "192.0.2.1", "; this machine does not have that address now"}},
	} {
		_, err := openTest(t, test.edit)
		for _, want := range test.says {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v; want %q in it", err, want)
			}
		}
	}
}

// TestListenPrivilegedPort is on a thread without any capability, which ends with it.
func TestListenPrivilegedPort(t *testing.T) {
	t.Parallel()
	if first, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); err == nil && len(first) < 3 { // containers have "0"
		t.Skip("every port is for everybody here")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		var none [2]unix.CapUserData
		err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0])
		if err == nil {
			l := listenConfig{HTTP: []string{"127.0.0.1:1"}}
			_, err = openSockets(context.Background(), &l, false, slog.New(slog.DiscardHandler))
		}
		done <- err
	}()
	if err, want := <-done, "; ports below 1024 are for root, for programs with CAP_NET_BIND_SERVICE, and for sockets that systemd opens"; err == nil || !strings.HasPrefix(err.Error(), "listen.http: ") || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("%v; want %q", err, want)
	}
}

// All or nothing: an address that cannot be had leaves none of the others open.
func TestListenAllOrNothing(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := freePort(t)
	own := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)).String()
	_, err = openTest(t, func(l *listenConfig) {
		l.Control, l.Datagram = []string{own}, []string{own}
		l.Local, l.LocalDatagram = []string{filepath.Join(dir, "s")}, []string{filepath.Join(dir, "d")}
		l.HTTP = []string{taken.Addr().String()}
	})
	if err == nil || !strings.HasPrefix(err.Error(), "listen.http: ") {
		t.Fatalf("%v; want that of listen.http, the last to be opened", err)
	}
	// A process that is being started at this moment has everything of ours until its exec.
	waitUntil(t, "control is closed", func() bool {
		ln, err := net.Listen("tcp", own)
		if err == nil {
			ln.Close()
		}
		return err == nil
	})
	waitUntil(t, "datagram is closed", func() bool {
		pc, err := net.ListenPacket("udp", own)
		if err == nil {
			pc.Close()
		}
		return err == nil
	})
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
