package main

// The datagram batch moves datagrams between a socket and memory, many a system
// call: recvmmsg(2) and sendmmsg(2), which neither net nor x/sys/unix offers,
// on raw socket addresses. Its own file because it is the half of the datagram
// service that is unsafe in Go's sense; it decides nothing. Who is answered,
// and what, is datagram.go's, which sees slices only.
//
// The memory: one room of 64 KiB for each datagram of a batch and 128 KiB for
// the answers, 2.2 MiB in all, mapped outside Go's heap and untouched, so that
// it costs a page only where a datagram has come to lie. A service that is
// asked now and then uses two pages, one under load of small datagrams 33.
// What longer ones touched is given back when the socket has run dry. Rooms of
// full length, rather than small ones and one large, so that a batch of long
// datagrams loses none and each lies in one piece.

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// datagramBatchSize is how many datagrams one system call moves. From 16
	// on the call itself is lost beside the work in the kernel for each of
	// them, and what waits behind a batch waits for less than 0.1 ms.
	datagramBatchSize = 32

	// datagramLarge is the length from which memory is given back: what is
	// shorter touches the one page of its room that is kept.
	datagramLarge = 4 << 10

	// datagramPatience is how long answers wait for room in a send buffer that
	// is full, once a batch: a queue on its way out is empty sooner, one behind
	// an address that nobody has takes seconds, and a time is wrong by then.
	datagramPatience = 50 * time.Millisecond

	// Room for the control messages of one datagram: one or two of pktinfo (40
	// and 32 bytes), and a timestamp (32) if a socket unit asks for that.
	datagramControl = 128

	// A unix socket's is ucred and no more: where there is room for more, the
	// kernel puts descriptors that a client sends along into our table.
	datagramUnixControl = unix.SizeofUcred + unix.SizeofCmsghdr
)

// datagramMessage is struct mmsghdr of recvmmsg(2).
type datagramMessage struct {
	hdr unix.Msghdr
	n   uint32
}

// A datagramSlot has what the kernel tells about one datagram beside its text.
type datagramSlot struct {
	control [datagramControl / 8]uint64 // aligned as struct cmsghdr wants it
	// A sockaddr of any family, and a NUL after the longest path of unix(7).
	name [unix.SizeofSockaddrUnix + 2]byte
}

// A datagramRequest is one datagram as it came. Its slices hold until the next
// read.
type datagramRequest struct {
	text      []byte
	truncated bool
	name      []byte // the source, a sockaddr
	control   []byte
}

// A datagramBatch reads datagrams from one socket and sends answers to them.
// It is one goroutine's.
type datagramBatch struct {
	conn     net.PacketConn
	raw      syscall.RawConn
	sent     func(service string, err error) // called once for each answer
	patience time.Duration                   // how long a batch of answers may wait; 0: not at all
	control  int

	// single is set where the kernel, or what stands in for it, does not know
	// the calls for many.
	single bool

	slots    []datagramSlot
	in, out  []datagramMessage
	iov      []unix.Iovec // of in, and then of out
	services []string     // what out answers, for the count

	mem     []byte // all that is mapped
	answers []byte // the end of mem that holds the answers queued so far
	queued  int    // of out
	large   bool   // more than the first page of a room, or of answers, was used

	// What the system call gave, and the functions for the poller, made once:
	// a closure for each call would be an allocation.
	got             int
	errno           syscall.Errno
	done            int // answers dealt with
	waiting         bool
	reader, sending func(fd uintptr) bool
}

// newDatagramBatch returns a batch of up to size datagrams on conn, with as
// much of control for each as may be used.
func newDatagramBatch(conn net.PacketConn, raw syscall.RawConn, size, control int, sent func(string, error)) (*datagramBatch, error) {
	mem, err := unix.Mmap(-1, 0, (size+2)*datagramMax, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	// A huge page would make one byte cost 2 MiB. Where there are none the
	// kernel refuses, and that is as well.
	unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
	b := &datagramBatch{
		conn: conn, raw: raw, sent: sent, control: control,
		slots: make([]datagramSlot, size), in: make([]datagramMessage, size), out: make([]datagramMessage, size),
		iov: make([]unix.Iovec, 2*size), services: make([]string, size),
		mem: mem, answers: mem[size*datagramMax : size*datagramMax],
	}
	for i := range b.in {
		b.iov[i].Base = &mem[i*datagramMax]
		b.iov[i].SetLen(datagramMax)
		h := &b.in[i].hdr
		h.Name = &b.slots[i].name[0]
		h.Control = (*byte)(unsafe.Pointer(&b.slots[i].control))
		h.Iov = &b.iov[i]
		h.SetIovlen(1)
	}
	b.got = size // so that read makes all of them ready
	b.reader, b.sending = b.readFD, b.sendFD
	return b, nil
}

// close gives the memory back. The batch is of no use after it.
func (b *datagramBatch) close() {
	mem := b.mem
	*b = datagramBatch{}
	unix.Munmap(mem)
}

// read waits for datagrams and returns how many have come. Deadlines and Close
// of the socket end the wait.
func (b *datagramBatch) read() (int, error) {
	for i := range b.got { // what the last read has changed
		h := &b.in[i].hdr
		h.Namelen = unix.SizeofSockaddrUnix
		h.SetControllen(b.control)
	}
	b.got = 0
	if err := b.raw.Read(b.reader); err != nil {
		return 0, err
	}
	if b.errno != 0 {
		return 0, os.NewSyscallError("recvmmsg", b.errno)
	}
	return b.got, nil
}

// readFD reads once; false means that there is nothing yet.
func (b *datagramBatch) readFD(fd uintptr) bool {
	for {
		var n uintptr
		if b.single {
			n, _, b.errno = unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&b.in[0].hdr)), unix.MSG_DONTWAIT)
			if b.errno == 0 {
				b.in[0].n, n = uint32(n), 1
			}
		} else {
			n, _, b.errno = unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in[0])), uintptr(len(b.in)), unix.MSG_DONTWAIT, 0, 0)
			if b.errno == unix.ENOSYS || b.errno == unix.EPERM { // an old kernel, an emulator; a filter of system calls
				b.single = true
				continue
			}
		}
		switch b.errno {
		case 0:
			b.got = int(n)
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			if b.large {
				unix.Madvise(b.mem, unix.MADV_DONTNEED)
				b.large = false
			}
			return false
		default:
			return true
		}
	}
}

// request returns datagram i of those read.
func (b *datagramBatch) request(i int) datagramRequest {
	m, room := &b.in[i], b.mem[i*datagramMax:(i+1)*datagramMax]
	if m.n > datagramLarge {
		b.large = true
	}
	control := unsafe.Slice((*byte)(unsafe.Pointer(&b.slots[i].control)), datagramControl)
	return datagramRequest{
		text:      room[:min(int(m.n), datagramMax)],
		truncated: m.hdr.Flags&unix.MSG_TRUNC != 0,
		name:      b.slots[i].name[:min(int(m.hdr.Namelen), unix.SizeofSockaddrUnix)],
		control:   control[:min(int(m.hdr.Controllen), b.control)],
	}
}

// room returns an empty slice with the capacity for any answer, to append the
// next one to. It sends what is queued if the memory for answers is used up.
func (b *datagramBatch) room() []byte {
	if cap(b.answers)-len(b.answers) < datagramMax {
		b.flush()
	}
	return b.answers[len(b.answers):]
}

// reply queues answer, which was appended to room, for the source of datagram
// i. control is sent along; it is nil or a part of the datagram's own.
func (b *datagramBatch) reply(i int, answer []byte, service string, control []byte) {
	k := b.queued
	b.queued++
	b.services[k] = service
	if used := len(b.answers) + len(answer); used <= cap(b.answers) {
		b.answers = b.answers[:used]
	} // else append has moved it to a place of its own, which iov keeps
	b.large = b.large || len(b.answers) > datagramLarge

	iov := &b.iov[len(b.in)+k]
	iov.Base = unsafe.SliceData(answer)
	iov.SetLen(len(answer))
	m := &b.out[k]
	m.hdr = unix.Msghdr{Name: b.in[i].hdr.Name, Namelen: b.in[i].hdr.Namelen, Iov: iov}
	m.hdr.SetIovlen(1)
	if len(control) > 0 {
		m.hdr.Control = &control[0]
		m.hdr.SetControllen(len(control))
	}
}

// readdress makes datagram i's answer go to the unix socket that is open as fd.
// There is no call to send to a socket file one holds; its name in /proc is
// one, and cannot be put in another's place meanwhile.
func (b *datagramBatch) readdress(i, fd int) {
	name := b.slots[i].name[:0]
	name = binary.NativeEndian.AppendUint16(name, unix.AF_UNIX)
	name = append(name, "/proc/self/fd/"...)
	name = append(strconv.AppendInt(name, int64(fd), 10), 0)
	b.in[i].hdr.Namelen = uint32(len(name))
}

// flush sends the answers that are queued. One that cannot be sent costs none
// of the others.
func (b *datagramBatch) flush() {
	if b.queued == 0 {
		return
	}
	b.done, b.waiting = 0, false
	err := b.raw.Write(b.sending)
	if err == nil && b.done < b.queued { // the send buffer is full
		if err = b.conn.SetWriteDeadline(time.Now().Add(b.patience)); err == nil {
			b.waiting = true
			err = b.raw.Write(b.sending)
			b.waiting = false
			b.conn.SetWriteDeadline(time.Time{})
		}
		if err != nil { // patience is at an end; each of them has one try yet
			patience := b.patience
			b.patience = 0
			err = b.raw.Write(b.sending)
			b.patience = patience
		}
	}
	for ; b.done < b.queued; b.done++ { // the socket was closed
		b.sent(b.services[b.done], err)
	}
	clear(b.iov[len(b.in):][:b.queued]) // an answer of its own may be let go
	b.queued, b.answers = 0, b.answers[:0]
}

// sendFD sends answers until all are dealt with, or until the send buffer is
// full and it is to wait; that is false for the poller the second time, when
// flush has set a deadline.
func (b *datagramBatch) sendFD(fd uintptr) bool {
	for b.done < b.queued {
		var n uintptr
		var errno syscall.Errno
		first := &b.out[b.done]
		if b.single {
			if _, _, errno = unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&first.hdr)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); errno == 0 {
				n = 1
			}
		} else {
			n, _, errno = unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(first)), uintptr(b.queued-b.done), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		}
		switch {
		case errno == 0:
			for range n {
				b.sent(b.services[b.done], nil)
				b.done++
			}
		case errno == unix.EINTR:
		case errno == unix.ENOSYS && !b.single:
			b.single = true
		case errno == unix.EAGAIN && b.patience > 0:
			return !b.waiting
		case first.hdr.Control != nil && errno != unix.EAGAIN:
			// What was asked is no address to answer from, as a broadcast
			// address: once more, from where routing would have it.
			first.hdr.Control = nil
			first.hdr.SetControllen(0)
		default:
			// It is the first that failed; the kernel has not seen the rest.
			b.sent(b.services[b.done], errno)
			b.done++
		}
	}
	return true
}

// datagramSource reads a sockaddr of IPv4 or IPv6. The zone is left out: the
// answer goes to the sockaddr, and netip compares addresses with a zone to no
// network. Another family gives the zero AddrPort.
func datagramSource(name []byte) netip.AddrPort {
	if len(name) < unix.SizeofSockaddrInet4 {
		return netip.AddrPort{}
	}
	port := binary.BigEndian.Uint16(name[2:])
	switch family := binary.NativeEndian.Uint16(name); {
	case family == unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(name[4:])), port)
	case family == unix.AF_INET6 && len(name) >= unix.SizeofSockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(name[8:])), port)
	}
	return netip.AddrPort{}
}

// unixTarget opens the socket file at path, without following a symbolic link
// there and without connecting to it, and fills st.
func unixTarget(path []byte, st *unix.Stat_t) (fd int, err error) {
	const flags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	dir := unix.AT_FDCWD // a variable: the constant is no uintptr
	r, _, errno := unix.Syscall6(unix.SYS_OPENAT, uintptr(dir), uintptr(unsafe.Pointer(&path[0])), flags, 0, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	fd = int(r)
	if err = unix.Fstat(fd, st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		err = unix.ENOTSOCK
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// datagramBuffer asks for a receive buffer of so many bytes for pc, and returns
// what there is now; the kernel gives no more than net.core.rmem_max unless we
// have CAP_NET_ADMIN. With 0 bytes it leaves the buffer as it is. The kernel
// counts twice what is asked, for its own bookkeeping (socket(7)); got is in
// the measure of what is asked.
func datagramBuffer(pc net.PacketConn, bytes int) (got int, err error) {
	const most = 1<<30 - 1 // twice that is the largest int of C
	c, ok := pc.(syscall.Conn)
	if !ok {
		return 0, unix.ENOTSOCK
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var opErr error
	err = raw.Control(func(fd uintptr) {
		if bytes = min(bytes, most); bytes > 0 {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes) != nil {
				opErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, bytes)
			}
		}
		n, getErr := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
		if got = n / 2; opErr == nil {
			opErr = getErr
		}
	})
	if err == nil {
		err = os.NewSyscallError("setsockopt SO_RCVBUF", opErr)
	}
	return got, err
}
