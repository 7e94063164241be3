package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// listenDatagrams opens a UDP socket with room for long datagrams.
func listenDatagrams(t testing.TB, network, addr string) *net.UDPConn {
	t.Helper()
	pc, err := net.ListenPacket(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	if _, err := datagramBuffer(pc, 4<<20); err != nil {
		t.Fatal(err)
	}
	return pc.(*net.UDPConn)
}

// dialDatagrams asks the service on pc by ip.
func dialDatagrams(t testing.TB, pc net.PacketConn, ip string) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.ParseIP(ip), Port: pc.LocalAddr().(*net.UDPAddr).Port})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := datagramBuffer(c, 4<<20); err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

// sendMany writes datagrams of every length, more than one batch, and
// returns the answers that must come, in their order.
func sendMany(t testing.TB, c net.Conn) (want []string) {
	t.Helper()
	for i := range 3 * datagramBatchSize {
		text := fmt.Sprint(i)
		switch i % 8 {
		case 1:
			text += strings.Repeat("l", datagramLarge)
		case 3, 4: // two in a row
			text += strings.Repeat("x", 60000+i)
		}
		if _, err := c.Write([]byte("echo " + text)); err != nil {
			t.Fatal(err)
		}
		want = append(want, text)
		if i%8 == 5 {
			c.Write([]byte("\xff\xff")) // none for this one
		}
	}
	return want
}

func readMany(t testing.TB, c net.Conn, want []string) {
	t.Helper()
	buf := make([]byte, datagramMax)
	for i, w := range want {
		n, err := c.Read(buf)
		if err != nil {
			t.Fatalf("answer %d of %d: %v", i, len(want), err)
		}
		if string(buf[:n]) != w {
			t.Fatalf("answer %d is %d bytes, %.20q; want %d, %.20q", i, n, buf[:n], len(w), w)
		}
	}
}

// What waits in the socket before it is served, as behind a socket unit, is all
// answered, whatever its length, in order, from the address that was asked.
func TestDatagramBatchAnswersAll(t *testing.T) {
	pc := listenDatagrams(t, "udp", "[::]:0")
	a, b := dialDatagrams(t, pc, "127.0.0.2"), dialDatagrams(t, pc, "::1")
	wantA, wantB := sendMany(t, a), sendMany(t, b)
	d, counts := newTestDatagramService()
	startDatagramService(t, d, pc)
	readMany(t, a, wantA)
	readMany(t, b, wantB)
	if !soon(func() bool { return counts.get("echo ok") == len(wantA)+len(wantB) }) {
		t.Errorf("%d counted as answered; want %d", counts.get("echo ok"), len(wantA)+len(wantB))
	}
}

// A kernel, emulator or filter of system calls without the calls for many is
// served one at a time. The filter holds for this thread alone, and ends with
// it, since the goroutine does not unlock it.
func TestDatagramBatchWithoutTheCallsForMany(t *testing.T) {
	for _, errno := range []syscall.Errno{unix.ENOSYS, unix.EPERM} {
		t.Run(errno.Error(), func(t *testing.T) {
			pc := listenDatagrams(t, "udp4", "0.0.0.0:0")
			c := dialDatagrams(t, pc, "127.0.0.3")
			want := sendMany(t, c)
			d, _ := newTestDatagramService()
			ctx, cancel := context.WithCancel(context.Background())
			ready, done := make(chan error, 1), make(chan error, 1)
			go func() {
				runtime.LockOSThread()
				err := refuseDatagramBatches(errno)
				if _, _, got := unix.Syscall6(unix.SYS_RECVMMSG, ^uintptr(0), 0, 0, 0, 0, 0); err == nil && got != errno {
					err = fmt.Errorf("recvmmsg gives %v behind the filter", got)
				}
				if ready <- err; err == nil {
					done <- d.serve(ctx, pc)
				}
			}()
			if err := <-ready; err != nil {
				cancel()
				t.Skipf("no filter of system calls here (an emulator has none): %v", err)
			}
			readMany(t, c, want)
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// refuseDatagramBatches has this thread's recvmmsg and sendmmsg fail with errno.
func refuseDatagramBatches(errno syscall.Errno) error {
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		result = unix.BPF_RET | unix.BPF_K
	)
	filter := []unix.SockFilter{
		{Code: load, K: 0}, // seccomp_data.nr
		{Code: equal, K: unix.SYS_RECVMMSG, Jt: 2},
		{Code: equal, K: unix.SYS_SENDMMSG, Jt: 1},
		{Code: result, K: unix.SECCOMP_RET_ALLOW},
		{Code: result, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}

// An answer that cannot be sent costs none of the others in its batch, and one
// that cannot leave from where it was asked leaves from elsewhere.
func TestDatagramBatchBadDestination(t *testing.T) {
	for _, single := range []bool{false, true} {
		t.Run(fmt.Sprint("single ", single), func(t *testing.T) {
			pc := listenDatagrams(t, "udp4", "0.0.0.0:0")
			raw, err := pc.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			udpPrepare(raw, netip.IPv4Unspecified())
			var errs []error
			b, err := newDatagramBatch(pc, raw, 8, datagramControl, func(_ string, err error) { errs = append(errs, err) })
			if err != nil {
				t.Fatal(err)
			}
			defer b.close()
			b.single = single
			const bad, odd = 1, 3
			var clients []*net.UDPConn
			for i := range 5 {
				c := dialDatagrams(t, pc, "127.0.0.1")
				clients = append(clients, c)
				c.Write([]byte("echo"))
				if single {
					i = 0
				}
				if n := i + 1; !single && i < 4 {
					continue
				} else if got, err := b.read(); err != nil || got != n {
					t.Fatalf("read = %d, %v; want %d", got, err, n)
				}
				for k := range b.got {
					which := k
					if single {
						which = len(clients) - 1
					}
					from, _ := udpReplyFrom(b.request(k).control)
					switch which {
					case bad: // the kernel refuses to broadcast
						copy(b.slots[k].name[4:8], []byte{255, 255, 255, 255})
					case odd: // no address of this machine
						copy(from[unix.CmsgLen(0)+4:], []byte{203, 0, 113, 1})
					}
					b.reply(k, append(b.room(), "answer"...), "echo", from)
				}
				b.flush()
			}
			if len(errs) != 5 {
				t.Fatalf("%d answers told of; want 5", len(errs))
			}
			for i, err := range errs {
				if (err != nil) != (i == bad) {
					t.Errorf("answer %d: %v", i, err)
				}
				if i == bad || i == odd { // odd's comes from an address that its connected socket does not hear, if at all
					continue
				}
				buf := make([]byte, 100)
				if n, err := clients[i].Read(buf); err != nil || string(buf[:n]) != "answer" {
					t.Errorf("client %d: %q, %v", i, buf[:n], err)
				}
			}
		})
	}
}

// residentPages tells how many pages of mem are in memory.
func residentPages(t *testing.T, mem []byte) (n int) {
	t.Helper()
	pages := make([]byte, (len(mem)+os.Getpagesize()-1)/os.Getpagesize())
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		t.Fatal(errno)
	}
	for _, p := range pages {
		n += int(p & 1)
	}
	return n
}

// A quiet service holds a few pages, also after a flood of the longest
// datagrams; and a deadline ends the wait for the next one.
func TestDatagramBatchMemory(t *testing.T) {
	pc := listenDatagrams(t, "udp4", "127.0.0.1:0")
	d, _ := newTestDatagramService()
	b, step, err := d.udpStep(pc)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	pc.SetReadDeadline(time.Now().Add(time.Minute))
	c := dialDatagrams(t, pc, "127.0.0.1")
	for range 5 {
		c.Write([]byte("time"))
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	if n := residentPages(t, b.mem); n > 2 {
		t.Errorf("%d pages after a few small datagrams; want 2", n)
	}
	long := append([]byte("echo "), make([]byte, 60000)...)
	d.count = func(string, string) {}
	if n := testing.AllocsPerRun(2, func() {
		for range datagramBatchSize {
			c.Write(long)
		}
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a batch of long datagrams, want 0", n)
	}
	if n := residentPages(t, b.mem) * os.Getpagesize(); n < datagramBatchSize*60000 {
		t.Errorf("%d bytes in memory after a batch of long datagrams; the test measures nothing", n)
	}
	pc.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if err := step(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("with nothing to read: %v; want the deadline", err)
	}
	if n := residentPages(t, b.mem); n != 0 {
		t.Errorf("%d pages when quiet after long datagrams; want 0", n)
	}
}

// A send buffer that is full holds a batch up for the time of its patience, and
// no longer. UDP on loopback has none, so a unix socket stands in.
func TestDatagramBatchPatience(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) *net.UnixAddr {
		return &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unixgram"}
	}
	pc, err := net.ListenUnixgram("unixgram", at("service"))
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	raw, err := pc.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var sent, lost int
	b, err := newDatagramBatch(pc, raw, 1, datagramUnixControl, func(_ string, err error) {
		if err != nil {
			lost++
		} else {
			sent++
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	b.patience = 20 * time.Millisecond
	deaf, err := net.DialUnix("unixgram", at("deaf"), at("service"))
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	for lost == 0 {
		if sent == 100_000 {
			t.Fatal("the send buffer does not fill")
		}
		deaf.Write([]byte("x"))
		if _, err := b.read(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		b.reply(0, append(b.room(), make([]byte, 60000)...), "echo", nil)
		b.flush()
		if took := time.Since(began); lost > 0 && took < b.patience {
			t.Errorf("lost after %v, before its time of %v", took, b.patience)
		}
	}
	deaf.Close()
	c, err := net.DialUnix("unixgram", at("client"), at("service"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("x"))
	if _, err := b.read(); err != nil {
		t.Fatal(err)
	}
	b.reply(0, append(b.room(), "answer"...), "echo", nil)
	b.flush()
	if lost != 1 {
		t.Errorf("%d lost; want the one that found the buffer full", lost)
	}
}

// A socket unit may have asked for more control messages than we do.
func TestDatagramTimestampsBesidePktinfo(t *testing.T) {
	pc := listenDatagrams(t, "udp", "[::]:0")
	raw, err := pc.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		for _, o := range [][2]int{{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS}, {unix.IPPROTO_IP, unix.IP_PKTINFO}} {
			if err := unix.SetsockoptInt(int(fd), o[0], o[1], 1); err != nil {
				t.Error(err)
			}
		}
	})
	d, _ := newTestDatagramService()
	startDatagramService(t, d, pc)
	for _, ip := range []string{"127.0.0.2", "::1"} {
		if got := askDatagram(t, dialDatagrams(t, pc, ip), "echo hi"); got != "hi" {
			t.Errorf("by %s: %q", ip, got)
		}
	}
}

func TestDatagramSource(t *testing.T) {
	v6 := append([]byte{0, 0, 0x9c, 0x40, 1, 2, 3, 4}, netip.MustParseAddr("fe80::1").AsSlice()...)
	v6 = append(v6, 9, 0, 0, 0) // the zone
	binary.NativeEndian.PutUint16(v6, unix.AF_INET6)
	v4 := []byte{0, 0, 0x9c, 0x40, 203, 0, 113, 9, 0, 0, 0, 0, 0, 0, 0, 0}
	binary.NativeEndian.PutUint16(v4, unix.AF_INET)
	for _, tt := range []struct {
		name []byte
		want string
	}{
		{v4, "203.0.113.9:40000"},
		{v6, "[fe80::1]:40000"},
		{v6[:20], "invalid AddrPort"},
		{v4[:4], "invalid AddrPort"},
		{nil, "invalid AddrPort"},
	} {
		if got := datagramSource(tt.name); got.String() != tt.want {
			t.Errorf("datagramSource(%x) = %v; want %s", tt.name, got, tt.want)
		}
	}
}

// A symbolic link, or a file, in the place of the client's socket is not
// followed, nor written to.
func TestDatagramUnixTarget(t *testing.T) {
	dir := t.TempDir()
	sock := filepath.Join(dir, "sock")
	pc, err := net.ListenPacket("unixgram", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	if err := os.Symlink(sock, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	for name, want := range map[string]error{"sock": nil, "link": unix.ENOTSOCK, "file": unix.ENOTSOCK, "none": unix.ENOENT} {
		fd, err := unixTarget([]byte(filepath.Join(dir, name)+"\x00"), &st)
		if err == nil {
			unix.Close(fd)
			if int(st.Uid) != os.Getuid() {
				t.Errorf("%s: owner %d", name, st.Uid)
			}
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: %v; want %v", name, err, want)
		}
	}
}

// The kernel's answer is in the measure of the question, and what cannot be
// had is told.
func TestDatagramBuffer(t *testing.T) {
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	before, err := datagramBuffer(pc, 0)
	if err != nil || before <= 0 {
		t.Fatalf("datagramBuffer(0) = %d, %v", before, err)
	}
	if got, err := datagramBuffer(pc, 100_000); err != nil || got != 100_000 {
		t.Errorf("datagramBuffer(100000) = %d, %v", got, err)
	}
	if got, err := datagramBuffer(pc, 0); err != nil || got != 100_000 {
		t.Errorf("datagramBuffer(0) changed it to %d, %v", got, err)
	}
	if got, err := datagramBuffer(pc, 1<<31-1); err != nil || got <= 100_000 { // CAP_NET_ADMIN decides how much
		t.Errorf("datagramBuffer(1<<31-1) = %d, %v", got, err)
	}
	pc.Close()
	if _, err := datagramBuffer(pc, 100_000); !errors.Is(err, net.ErrClosed) {
		t.Errorf("datagramBuffer of a closed socket: %v", err)
	}
}
