// listen.go opens the daemon's listeners, or takes those that systemd hands over.
// It is apart from server.go along a line of trust: who opened a socket decides
// its address, its mode and whose file it is, and whatever comes from outside is
// looked at here, once, before anything is served on it. It knows no session.

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

const (
	groupFile    = "/etc/group"
	maxGroupFile = 4 << 20 // a university's has some thousand groups with their members

	// keptDescriptors is how many of the last descriptors that the process may have
	// (RLIMIT_NOFILE) connections for data may not take, and sessions not twice as many:
	// the pages of listen.http and the operator, who are the ones to tell of it, have these.
	// A page takes one or two, and a try of each listener two for each. With few
	// descriptors it is their keptShare-th part.
	keptDescriptors = 32
	keptShare       = 8
)

// A socketKind is one name of contract section 3, as it stands in
// FileDescriptorName= and, with "_" for "-", in [listen].
type socketKind struct {
	name    string
	network string // tcp, udp, unix or unixgram
	addrs   func(*listenConfig) []string
}

func socketKinds() []socketKind {
	return []socketKind{
		{"control", "tcp", func(l *listenConfig) []string { return l.Control }},
		{"tls", "tcp", func(l *listenConfig) []string { return l.TLS }},
		{"datagram", "udp", func(l *listenConfig) []string { return l.Datagram }},
		{"local", "unix", func(l *listenConfig) []string { return l.Local }},
		{"local-datagram", "unixgram", func(l *listenConfig) []string { return l.LocalDatagram }},
		{"http", "tcp", func(l *listenConfig) []string { return l.HTTP }},
	}
}

//go:noinline
func (k socketKind) key() string { return "listen." + strings.ReplaceAll(k.name, "-", "_") }

// A socket is one open listener with the name of its kind.
type socket struct {
	kind   string
	stream net.Listener
	packet net.PacketConn
	given  bool   // by systemd, which keeps it when we close ours
	file   string // ours to remove; package net removes those of stream sockets itself
}

func (k socket) addr() net.Addr {
	if k.stream != nil {
		return k.stream.Addr()
	}
	return k.packet.LocalAddr()
}

func (k socket) close() {
	if k.stream != nil {
		k.stream.Close()
		return
	}
	if k.file != "" {
		os.Remove(k.file)
	}
	k.packet.Close()
}

// openSockets opens what l names. With inherit, sockets from systemd take the
// place of the configured ones of the same name. On an error nothing stays open.
func openSockets(ctx context.Context, l *listenConfig, inherit bool, log *slog.Logger) (all []socket, err error) {
	defer func() {
		if err != nil {
			for _, k := range all {
				k.close()
			}
			all = nil
		}
	}()
	given := map[string]bool{}
	if inherit {
		if all, err = inheritedSockets(socketKinds()); err != nil {
			return all, err
		}
		for _, k := range all {
			given[k.kind] = true
		}
	}
	for _, kind := range socketKinds() {
		if given[kind.name] {
			continue
		}
		for _, addr := range kind.addrs(l) {
			k, err := openSocket(ctx, kind, addr, l)
			if err != nil {
				return all, errorf("%s: %w%s", kind.key(), err, openHint(kind, err))
			}
			all = append(all, k)
		}
	}
	for _, k := range all {
		if n := int(l.DatagramBuffer); n > 0 && k.packet != nil {
			if got, err := datagramBuffer(k.packet, n); err != nil || got < n {
				log.Warn("datagram buffer is smaller than listen.datagram_buffer asks; raise net.core.rmem_max", "listener", k.kind, "asked", n, "got", got, "error", err)
			}
		}
	}
	return all, nil
}

// openHint says what to do about the errors that people meet.
func openHint(kind socketKind, err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "; another program has it: see ss -tulnp, or choose another address"
	case errors.Is(err, syscall.EACCES) && beginsWith(kind.network, "unix"):
		return "; the directory has to be there, and to belong to the user that berth runs as"
	case errors.Is(err, syscall.EACCES):
		return "; ports below 1024 are for root, for programs with CAP_NET_BIND_SERVICE, and for sockets that systemd opens"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "; this machine does not have that address now"
	}
	return ""
}

// openSocket opens one configured address.
func openSocket(ctx context.Context, kind socketKind, addr string, l *listenConfig) (k socket, err error) {
	k = socket{kind: kind.name}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // Landlock's rules for ports do not see those
	if beginsWith(kind.network, "unix") {
		err = k.openLocal(ctx, &lc, kind.network, addr, l)
	} else {
		err = k.openPort(ctx, &lc, kind.network, addr, l)
	}
	if err == nil && l.Backlog > 0 && k.stream != nil {
		// listen(2) on a socket that listens changes the length of its queue.
		err = onDescriptor(k.stream, func(fd int) error { return os.NewSyscallError("listen", unix.Listen(fd, l.Backlog)) })
		if err != nil {
			k.close()
		}
	}
	return k, err
}

// openPort opens a TCP or UDP socket.
func (k *socket) openPort(ctx context.Context, lc *net.ListenConfig, of, addr string, l *listenConfig) (err error) {
	network, address := addressFamily(of, addr, l)
	open := func() {
		if of == "tcp" {
			k.stream, err = lc.Listen(ctx, network, address)
		} else {
			k.packet, err = lc.ListenPacket(ctx, network, address)
		}
	}
	if open(); errors.Is(err, syscall.EAFNOSUPPORT) && network == of {
		// A kernel without IPv6: every address is every IPv4 address there.
		if _, port, perr := net.SplitHostPort(address); perr == nil {
			network, address = of+"4", joinHostPort("0.0.0.0", port)
			open()
		}
	}
	return err
}

// addressFamily is what package net is to be asked for, so that an address means
// what it says: 0.0.0.0 is IPv4 alone (net.Listen("tcp") takes IPv6 too), [::] is
// both, unless ipv6_only says otherwise or 0.0.0.0 stands beside it with the same
// port, and an address is of its own family.
func addressFamily(network, addr string, l *listenConfig) (string, string) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return network, addr // the configuration's check has the words for it
	}
	a, err := netip.ParseAddr(host)
	switch {
	case host == "":
		a = netip.IPv6Unspecified()
	case err != nil: // a host's name
		return network, addr
	}
	switch {
	case a.Unmap().Is4():
		return network + "4", joinHostPort(a.Unmap().String(), port)
	case !a.IsUnspecified():
		return network + "6", addr
	}
	alone := l.IPv6Only
	for _, kind := range socketKinds() {
		if kind.network == network {
			for _, other := range kind.addrs(l) {
				h, p, _ := net.SplitHostPort(other)
				alone = alone || h == "0.0.0.0" && p == port && p != "0"
			}
		}
	}
	if alone {
		network += "6"
	}
	return network, joinHostPort("::", port)
}

// openLocal opens a unix socket and gives its file the mode and group of l.
// Everyone may knock by default: the kernel tells who it is, and the users' files
// say who may come in.
func (k *socket) openLocal(ctx context.Context, lc *net.ListenConfig, network, path string, l *listenConfig) error {
	gid := -1
	if l.LocalGroup != "" {
		var err error
		if gid, err = groupID(l.LocalGroup); err != nil {
			return errorf("listen.local_group: %w", err)
		}
	}
	err := clearStale(network, path)
	if err != nil {
		return err
	}
	if network == "unix" {
		k.stream, err = lc.Listen(ctx, network, path)
	} else if k.packet, err = lc.ListenPacket(ctx, network, path); err == nil {
		k.file = path
	}
	if err != nil {
		return err
	}
	if gid >= 0 {
		err = os.Chown(path, -1, gid)
	}
	if err == nil {
		err = os.Chmod(path, os.FileMode(l.LocalMode))
	}
	if err != nil {
		k.close()
	}
	return err
}

// groupID looks a group up by name or number.
func groupID(name string) (int, error) {
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n), nil
	}
	// group(5), as berth is linked without the C library and its other sources of
	// groups; os/user reads the same file and brings much more along.
	data, err := readConfigBytes(groupFile, maxGroupFile)
	if err != nil {
		return 0, errorf("%s: %w", groupFile, err)
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Split(strings.TrimSpace(line), ":"); len(fields) >= 3 && fields[0] == name {
			n, err := strconv.ParseUint(fields[2], 10, 31)
			return int(n), err
		}
	}
	return 0, errorf("there is no group %q; make it with groupadd --system, or write another", name)
}

// clearStale removes a socket file that nobody listens on any more, and makes
// its directory. A file that is no socket, or one that answers, stays.
func clearStale(network, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	st, err := os.Lstat(path)
	if err != nil {
		return nil
	}
	if st.Mode().Type() != os.ModeSocket {
		return errorf("%s exists and is no socket", path)
	}
	c, err := net.Dial(network, path)
	switch {
	case err == nil:
		c.Close()
		return errorf("another program answers on %s", path)
	case errors.Is(err, syscall.ECONNREFUSED): // unix(7): nobody has it
		return os.Remove(path)
	case errors.Is(err, os.ErrNotExist): // gone since
		return nil
	case errors.Is(err, syscall.EPROTOTYPE), errors.Is(err, syscall.EAGAIN): // one of another type, or whose queue is full
		return errorf("another program has %s", path)
	}
	return err
}

// --- from systemd ---

// inheritedSockets takes every socket that systemd passed, which must be of one
// of kinds, in one pass: activation's helpers for streams and for packets each use up the environment.
// Try it by hand with
//
//	systemd-socket-activate -l 2121 --fdname=control berth serve
//
// The order of descriptors is not that of anything; only names count.
func inheritedSockets(kinds []socketKind) (all []socket, err error) {
	files := activation.Files(true)
	for _, f := range files {
		if err == nil {
			var k socket
			if k, err = inherited(f, kinds); err == nil {
				all = append(all, k)
			}
		}
		f.Close()
	}
	if err != nil {
		for _, k := range all {
			k.close()
		}
		return nil, err
	}
	return all, nil
}

// inherited makes a socket of a descriptor that systemd passed, if it is what
// its name promises.
func inherited(f *os.File, kinds []socketKind) (socket, error) {
	k := socket{kind: f.Name(), given: true}
	var names []string
	for _, kind := range kinds {
		names = append(names, kind.name)
		if kind.name != k.kind {
			continue
		}
		if problem := wrongSocket(int(f.Fd()), kind.network); problem != "" {
			return k, errorf("systemd passed as %q %s", k.kind, problem)
		}
		var err error
		if kind.network == "tcp" || kind.network == "unix" {
			k.stream, err = net.FileListener(f)
			if u, ok := k.stream.(*net.UnixListener); ok {
				u.SetUnlinkOnClose(false) // the file is systemd's
			}
		} else {
			k.packet, err = net.FilePacketConn(f)
		}
		if err != nil {
			return k, errorf("socket %q from systemd: %w", k.kind, err)
		}
		return k, nil
	}
	return k, errorf("systemd passed a socket named %q; FileDescriptorName= of its unit must be %s", k.kind, strings.Join(names, " or "))
}

// wrongSocket says what is wrong with a descriptor that should be a socket for
// network, and what would be right; "" if it is one.
func wrongSocket(fd int, network string) string {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return "what is no socket"
	}
	kind, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	listens, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	protocol, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	is := "another"
	switch domain {
	case unix.AF_UNIX:
		is = map[int]string{unix.SOCK_STREAM: "unix", unix.SOCK_DGRAM: "unixgram"}[kind]
	case unix.AF_INET, unix.AF_INET6:
		is = map[int]string{unix.SOCK_STREAM: "tcp", unix.SOCK_DGRAM: "udp"}[kind]
	}
	words := map[string]string{"tcp": "a TCP socket", "udp": "a UDP socket", "unix": "a unix stream socket", "unixgram": "a unix datagram socket"}
	want := map[string]string{
		"tcp": "a port: write ListenStream=2121", "unix": "a path: write ListenStream=/run/berth/berth.sock",
		"udp": "a port: write ListenDatagram=2121", "unixgram": "a path: write ListenDatagram=/run/berth/datagram.sock",
	}[network]
	switch {
	case is != network:
		got := words[is]
		if got == "" {
			got = "a socket of another kind"
		}
		return fmt.Sprintf("%s; that name needs %s with %s", got, words[network], want)
	case kind == unix.SOCK_STREAM && listens == 0:
		return "a connection and no listener; its unit needs Accept=no"
	case network == "tcp" && protocol == unix.IPPROTO_MPTCP:
		return "an MPTCP socket, which the rules for ports of the sandbox do not see; remove SocketProtocol=mptcp"
	}
	return ""
}

// isKept tells, of a descriptor that was just opened, whether it is one of the last, so
// many times keptDescriptors of them. The kernel gives the lowest that is free, so all
// below are in use.
func isKept(fd, times int) bool {
	var most unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &most)
	n := int(min(most.Cur, 1<<30))
	return err == nil && fd >= n-times*min(keptDescriptors, n/keptShare)
}

// crowded tells whether the next descriptor is one of those.
func crowded(times int) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	unix.Close(fd)
	return lacking(err) || err == nil && isKept(fd, times)
}

// onDescriptor runs call on the descriptor of a listener or connection.
func onDescriptor(c any, call func(fd int) error) error {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return errors.ErrUnsupported
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := rc.Control(func(fd uintptr) { result = call(int(fd)) }); err != nil {
		return err
	}
	return result
}
