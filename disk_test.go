package main

// What a real file system says no to (issue: full, over quota, read-only, gone), and
// what the client, the disk and the ledger then have. Every disk here is a real one: an
// image on a loop device, made and mounted by the test, which therefore needs root.
// Nothing is imitated: an error that no kernel would send proves nothing.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// requireRootEnv makes a test fail where it would be skipped for want of root or a tool.
const requireRootEnv = "BERTH_REQUIRE_ROOT"

// testDisk is a file system in a file, mounted.
type testDisk struct {
	image, dir string
}

// diskSizes are the smallest that mkfs makes without complaint, and a little.
var diskSizes = map[string]int64{"ext4": 64 << 20, "xfs": 320 << 20, "btrfs": 160 << 20, "vfat": 64 << 20}

// diskMissing skips a test, or fails it where nothing may be skipped.
func diskMissing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv(requireRootEnv) == "1" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// newTestDisk makes and mounts one; size 0 is the smallest, mkfs is what mkfs.KIND is told.
func newTestDisk(t *testing.T, kind string, size int64, mkfs ...string) *testDisk {
	t.Helper()
	if os.Getuid() != 0 {
		diskMissing(t, "mounting an image takes root")
	}
	tool, err := exec.LookPath("mkfs." + kind)
	if err != nil {
		diskMissing(t, "%v", err)
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || !strings.Contains(string(known), "\t"+kind+"\n") {
		// A module that is not loaded yet is not listed.
		if exec.Command("modprobe", kind).Run() != nil {
			// No kernel option of berth's: even where root is required, vfat may be missing.
			t.Skipf("this kernel has no %s", kind)
		}
	}
	top := t.TempDir()
	d := &testDisk{image: filepath.Join(top, "image"), dir: filepath.Join(top, "disk")}
	if size == 0 {
		size = diskSizes[kind]
	}
	f, err := os.Create(d.image)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := os.Mkdir(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	args := map[string][]string{"ext4": {"-q", "-m", "0"}, "xfs": {"-q"}, "btrfs": {"-q"}}[kind]
	d.run(t, tool, append(append(args, mkfs...), d.image)...)
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.dir).CombinedOutput(); err != nil {
		diskMissing(t, "mount -o loop: %v: %s", err, out)
	}
	t.Cleanup(func() { unix.Unmount(d.dir, unix.MNT_DETACH) })
	return d
}

func (d *testDisk) run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// sync puts all of it on the disk.
func (d *testDisk) sync(t *testing.T) {
	t.Helper()
	f, err := os.Open(d.dir)
	if err == nil {
		err = unix.Syncfs(int(f.Fd()))
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Of <linux/fs.h>; ext4 and xfs have the first.
const (
	fsShutdown        = 0x8004587d // _IOR('X', 125, __u32)
	fsShutdownNoFlush = 2          // not even the log: as if the power had gone
	fsFreeze          = 0xc0045877 // FIFREEZE
	fsThaw            = 0xc0045878 // FITHAW
)

// cut stops the file system dead.
func (d *testDisk) cut(t *testing.T) {
	t.Helper()
	f, err := os.Open(d.dir)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	var how [4]byte
	binary.NativeEndian.PutUint32(how[:], fsShutdownNoFlush)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsShutdown, uintptr(unsafe.Pointer(&how))); errno != 0 {
		t.Errorf("cutting the power: %v", errno)
	}
}

// freeze has every write wait until thaw.
func (d *testDisk) freeze(t *testing.T) (thaw func()) {
	t.Helper()
	f, err := os.Open(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsFreeze, 0); errno != 0 {
		t.Fatalf("freezing: %v", errno)
	}
	thaw = sync.OnceFunc(func() { unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsThaw, 0) })
	t.Cleanup(thaw)
	return thaw
}

// remount is the machine's next start. Nothing may have files open there.
func (d *testDisk) remount(t *testing.T) {
	t.Helper()
	d.run(t, "umount", d.dir)
	d.run(t, "mount", "-o", "loop", d.image, d.dir)
}

// --- a berth on it ---

// diskBox is a berth as a process, with ann's home on some disk and the state elsewhere.
type diskBox struct {
	t    *testing.T
	p    *process
	box  *ftpBox
	home string
	file string
}

// newDiskBox starts one; user is more of ann's TOML.
func newDiskBox(t *testing.T, home, user string) *diskBox {
	t.Helper()
	dir := t.TempDir()
	b := &diskBox{t: t, box: &ftpBox{dir: dir, home: home}, home: home, file: filepath.Join(dir, "berth.toml")}
	if err := os.MkdirAll(home, 0o755); err != nil {
		t.Fatal(err)
	}
	b.box.writeTLS(t, filepath.Join(dir, "state"))
	b.box.user(t, "ann", user)
	b.box.configure(t, daemonListen+quickDrain)
	b.start()
	return b
}

func (b *diskBox) start() {
	b.t.Helper()
	b.p = serveBerth(b.t, b.file, nil)
}

// login waits for the count of the home, which goes on from the start, and logs in.
func (b *diskBox) login() *ftpClient {
	b.t.Helper()
	b.ledger()
	return b.p.dial("control").login()
}

// logged waits for a log line that has these attributes.
func (b *diskBox) logged(msg string, attrs map[string]string) {
	b.t.Helper()
	timeout := time.After(replyTime)
	for {
		select {
		case line, ok := <-b.p.lines:
			if !ok {
				b.t.Fatalf("berth ended before it logged %q: %s", msg, b.p.rest.String())
			}
			same := line["msg"] == msg
			for k, v := range attrs {
				same = same && wildcard(v, fmt.Sprint(line[k]))
			}
			if same {
				return
			}
		case <-timeout:
			b.t.Errorf("no log line %q with %v", msg, attrs)
			return
		}
	}
}

// ledger compares the ledger with a walk. While the home is being counted it waits.
func (b *diskBox) ledger() {
	b.t.Helper()
	c, err := dialCrash(b.p.addrs["control"], "ann")
	if err != nil {
		b.t.Fatal(err)
	}
	defer c.conn.Close()
	for end := time.Now().Add(replyTime); ; {
		u, _, _, err := walkHome(b.home)
		if err != nil {
			b.t.Fatal(err)
		}
		a, err := c.quota()
		if err != nil {
			b.t.Fatal(err)
		}
		if a.counting && time.Now().Before(end) {
			runtime.Gosched()
			continue
		}
		if len(u.staging) > 0 || a.used != u.bytes || a.files != u.files {
			b.t.Errorf("staging files %q; a walk counts %d bytes in %d files, SITE QUOTA says %q", u.staging, u.bytes, u.files, a.text)
		}
		return
	}
}

func (b *diskBox) want(name string, content []byte) {
	b.t.Helper()
	got, err := os.ReadFile(filepath.Join(b.home, name))
	if err != nil {
		b.t.Error(err)
	} else if !bytes.Equal(got, content) {
		b.t.Errorf("%s holds %d bytes, which are not the %d that belong there", name, len(got), len(content))
	}
}

// upload runs a verb whose data the server may stop taking, and returns the last reply.
func (f *ftpClient) upload(command string, content []byte) string {
	f.t.Helper()
	f.cmd("EPSV", "229 *")
	d := f.open()
	f.send(command + "\r\n")
	if first := f.want("*"); !strings.HasPrefix(first, "150 ") {
		return first
	}
	d.SetDeadline(time.Now().Add(replyTime))
	d.Write(content) // what fails tells the reply
	d.Close()
	return f.want("*")
}

// refused runs a command that must be refused so.
func (f *ftpClient) refused(command string, content []byte, patterns ...string) {
	f.t.Helper()
	got := f.upload(command, content)
	for _, p := range patterns {
		if wildcard(p, got) {
			return
		}
	}
	f.t.Errorf("%s: %q; want one of %q", command, got, patterns)
}

func (f *ftpClient) stored(command string, content []byte) {
	f.t.Helper()
	if got := f.upload(command, content); !strings.HasPrefix(got, "226 ") {
		f.t.Errorf("%s: %s", command, got)
	}
}

func (f *ftpClient) number(command string) int64 {
	f.t.Helper()
	n, err := strconv.ParseInt(strings.TrimPrefix(f.cmd(command, "213 *"), "213 "), 10, 64)
	if err != nil {
		f.t.Error(err)
	}
	return n
}

// diskFill takes all but left bytes of a disk away.
func diskFill(t *testing.T, dir string, left int64) (file string) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "filler")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if size := int64(st.Bavail)*int64(st.Bsize) - left; size > 0 {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
			t.Fatal(err)
		}
	}
	return file
}

// --- full ---

func TestDiskFull(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			disk := newTestDisk(t, kind, 0)
			b := newDiskBox(t, filepath.Join(disk.dir, "home"), "")
			c := b.login()
			old, big := testBytes(100<<10), testBytes(12<<20)
			c.stored("STOR old", old)
			filler := diskFill(t, disk.dir, 3<<20)

			c.refused("STOR old", big, "452 *")
			b.logged("transfer", map[string]string{"path": "/old", "result": "no_space", "error": "*no space left on device*"})
			b.want("old", old)
			c.refused("APPE old", big, "452 *")
			b.want("old", old)
			// Nothing is kept of what there is no room for, but what was kept before.
			c.refused("STOR new", big, "452 *")
			c.cmd("SIZE new", "550 *")
			c.cmd("ALLO 1000000", "200 *")
			c.refused("STOR new", big[:5000], "426 *")
			c.cmd("REST 5000", "350 *")
			c.refused("STOR new", big[5000:], "452 *")
			c.cmd("SIZE new", "213 5000")
			b.ledger()
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			c.cmd("REST 5000", "350 *")
			c.stored("STOR new", big[5000:])
			b.want("new", big)
			c.cmd("PWD", "257 *")
			b.ledger()
		})
	}
}

func TestDiskOutOfInodes(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			args := map[string][]string{"ext4": {"-N", "32"}, "xfs": nil}[kind]
			disk := newTestDisk(t, kind, 0, args...)
			b := newDiskBox(t, filepath.Join(disk.dir, "home"), "")
			c := b.login()
			old := testBytes(100)
			c.stored("STOR old", old)
			if kind == "xfs" { // whose inodes are made of free space
				diskFill(t, disk.dir, 256<<10)
			}
			var got string
			for i := 0; i < 2000 && !strings.HasPrefix(got, "452 "); i++ {
				if got = c.upload(fmt.Sprintf("STOR f%d", i), []byte("small")); !strings.HasPrefix(got, "226 ") && !strings.HasPrefix(got, "452 ") {
					t.Fatal(got)
				}
			}
			if !strings.HasPrefix(got, "452 ") {
				t.Fatal("there is no end of inodes")
			}
			if kind == "ext4" { // xfs still has some in its last chunk now and then
				c.refused("STOR old", []byte("new"), "452 *")
				c.refused("STOU", []byte("new"), "452 *")
				c.cmd("MKD sub", "452 *")
			}
			b.want("old", old)
			b.ledger()
			c.cmd("DELE f0", "250 *")
			c.stored("STOR old", []byte("new"))
			b.want("old", []byte("new"))
			b.ledger()
		})
	}
}

// TestDiskOutOfInodesIsLogged: what never came to a transfer leaves a line too.
func TestDiskOutOfInodesIsLogged(t *testing.T) {
	disk := newTestDisk(t, "ext4", 0, "-N", "16")
	b := newDiskBox(t, filepath.Join(disk.dir, "home"), "")
	c := b.login()
	for i := 0; ; i++ {
		f, err := os.Create(filepath.Join(disk.dir, fmt.Sprint(i)))
		if errors.Is(err, syscall.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	c.refused("STOR x", []byte("x"), "452 *")
	b.logged("refused", map[string]string{"verb": "STOR", "result": "disk_full", "error": "*no space left on device*"})
	// What the alert BerthDiskFull asks for, though the upload never began.
	resp, err := (&http.Client{Timeout: replyTime}).Get("http://" + b.p.addrs["http"] + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if want := `berth_transfers_total{direction="upload",protocol="ftp",result="no_space",user="ann"} 1`; err != nil || !strings.Contains(string(page), want) {
		t.Errorf("no %s in\n%s", want, ownLines(string(page)))
	}
}

// --- over the kernel's quota ---

func TestDiskQuota(t *testing.T) {
	disk := newTestDisk(t, "btrfs", 0)
	volume := filepath.Join(disk.dir, "volume")
	disk.run(t, "btrfs", "-q", "subvolume", "create", volume)
	disk.run(t, "btrfs", "-q", "quota", "enable", disk.dir)
	disk.run(t, "btrfs", "-q", "qgroup", "limit", "8M", volume)
	for _, user := range []string{"", "quota = \"filesystem\"\n", "quota_bytes = \"1GiB\"\n"} {
		t.Run(user, func(t *testing.T) {
			home := filepath.Join(volume, "home")
			b := newDiskBox(t, home, user)
			kernels := strings.Contains(user, "filesystem")
			check := func() {
				t.Helper()
				if !kernels {
					b.ledger()
				}
			}
			c := b.p.dial("control").login()
			check()
			old, big := testBytes(100<<10), testBytes(12<<20)
			c.stored("STOR old", old)
			c.refused("STOR old", big, "552 *")
			b.logged("transfer", map[string]string{"path": "/old", "result": "no_space", "error": "*disk quota exceeded*"})
			b.want("old", old)
			check()
			c.cmd("DELE old", "250 *")
			c.refused("STOR new", big, "552 *")
			c.cmd("SIZE new", "550 *")
			c.cmd("PWD", "257 *")
			check()

			// AVBL and SITE QUOTA: nothing is known but what statfs says.
			free := func() int64 {
				var st unix.Statfs_t
				if err := unix.Statfs(home, &st); err != nil {
					t.Fatal(err)
				}
				return int64(st.Bavail) * int64(st.Bsize)
			}
			if kernels {
				for range 100 { // btrfs frees later than it says
					before := free()
					available := c.number("AVBL")
					c.send("SITE QUOTA\r\n")
					_, text := c.reply()
					if free() != before {
						continue
					}
					if available != before {
						t.Errorf("AVBL says %d; %d bytes are free", available, before)
					}
					if !strings.Contains(text, fmt.Sprintf(" free on the disk: %d bytes", before)) || strings.Contains(text, "used") {
						t.Errorf("SITE QUOTA says %q; %d bytes are free", text, before)
					}
					break
				}
			}
			b.p.signal(syscall.SIGTERM)
			b.p.ended(exitOK)
		})
	}
}

// TestDiskFileTooBig: the limit of the process, as LimitFSIZE= in a unit sets it. Its
// signal, SIGXFSZ, ends a program that does not expect it.
func TestDiskFileTooBig(t *testing.T) {
	b := newDiskBox(t, filepath.Join(t.TempDir(), "home"), "")
	c := b.login()
	old, big := testBytes(100<<10), testBytes(4<<20)
	c.stored("STOR old", old)
	limit := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	if err := unix.Prlimit(b.p.cmd.Process.Pid, unix.RLIMIT_FSIZE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	c.refused("STOR old", big, "552 *")
	b.logged("transfer", map[string]string{"path": "/old", "result": "no_space", "error": "*file too large*"})
	b.want("old", old)
	c.refused("APPE old", big, "552 *")
	b.want("old", old)
	c.refused("STOR new", big, "552 *")
	c.cmd("SIZE new", "550 *")
	c.stored("STOR old", []byte("small"))
	b.want("old", []byte("small"))
	b.ledger()
}

// --- read-only, broken, gone ---

func TestDiskReadOnly(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			disk := newTestDisk(t, kind, 0)
			b := newDiskBox(t, filepath.Join(disk.dir, "home"), "")
			c := b.login()
			old := testBytes(100 << 10)
			c.stored("STOR old", old)
			c.cmd("MKD dir", "257 *")
			disk.run(t, "mount", "-o", "remount,ro", disk.dir)
			c.refused("STOR old", []byte("new"), "550 *", "551 *", "451 *")
			b.logged("refused", map[string]string{"verb": "STOR", "result": "read_only", "error": "*read-only file system*"})
			c.refused("STOR new", []byte("new"), "550 *", "551 *", "451 *")
			c.refused("APPE old", []byte("new"), "550 *", "551 *", "451 *")
			c.cmd("DELE old", "550 *")
			c.cmd("MKD new", "550 *")
			c.cmd("RMD dir", "550 *")
			c.cmd("RNFR old", "350 *")
			c.cmd("RNTO other", "550 *")
			if got := c.fetch("RETR old"); got != string(old) {
				t.Errorf("RETR brings %d bytes", len(got))
			}
			b.ledger()
			// A new session works too, and so does this one when the disk is well again.
			b.login().cmd("SIZE old", fmt.Sprintf("213 %d", len(old)))
			disk.run(t, "mount", "-o", "remount,rw", disk.dir)
			b.want("old", old)
			c.stored("STOR old", []byte("new"))
			b.want("old", []byte("new"))
			b.ledger()
		})
	}
}

// TestDiskDies: the file system stops under an upload. Every access is an I/O error then.
func TestDiskDies(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			disk := newTestDisk(t, kind, 0)
			b := newDiskBox(t, filepath.Join(disk.dir, "home"), "")
			c := b.login()
			old := testBytes(100 << 10)
			c.stored("STOR old", old)
			c.cmd("EPSV", "229 *")
			d := c.open()
			c.cmd("STOR old", "150 *")
			if _, err := d.Write(old[:1000]); err != nil {
				t.Fatal(err)
			}
			disk.cut(t)
			d.Close()
			c.want("451 *")
			b.logged("transfer", map[string]string{"path": "/old", "result": "error", "error": "*input/output error*"})
			c.refused("STOR new", []byte("x"), "451 *")
			c.cmd("PWD", "257 *")
			c.cmd("NOOP", "200 *")
			c.cmd("QUIT", "221 *")
			b.p.signal(syscall.SIGTERM)
			b.p.ended(exitOK)
			disk.remount(t)
			b.want("old", old)
			b.start()
			c = b.login()
			c.stored("STOR old", []byte("new"))
			b.want("old", []byte("new"))
			b.ledger()
		})
	}
}

// TestHomeRemoved: rm -rf under a session and its upload. What has no name any more
// cannot be told to be stored.
func TestHomeRemoved(t *testing.T) {
	b := newDiskBox(t, filepath.Join(t.TempDir(), "home"), "")
	c, busy := b.login(), b.login()
	c.stored("STOR old", []byte("old"))
	busy.cmd("EPSV", "229 *")
	d := busy.open()
	busy.cmd("STOR up", "150 *")
	if _, err := d.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(b.home); err != nil {
		t.Fatal(err)
	}
	d.Close()
	busy.want("550 *")
	c.refused("STOR new", []byte("new"), "550 *")
	c.cmd("MKD new", "550 *")
	c.cmd("SIZE old", "550 *")
	c.cmd("DELE old", "550 *")
	c.cmd("NOOP", "200 *")
	// The next login finds, or gets, a home in the place.
	c = b.p.dial("control").login()
	c.stored("STOR new", []byte("new"))
	b.want("new", []byte("new"))
	b.ledger()
}

// TestHomeUnmounted: a disk is taken away as far as one can while it is in use. What a
// session that still has it is told must hold for the disk.
func TestHomeUnmounted(t *testing.T) {
	disk := newTestDisk(t, "ext4", 0)
	b := newDiskBox(t, disk.dir, "")
	c := b.login()
	c.stored("STOR old", []byte("old"))
	disk.run(t, "umount", "-l", disk.dir)
	got := c.upload("STOR new", []byte("new"))
	c.cmd("NOOP", "200 *")
	// A new session has what is in that place now: an empty directory, with a ledger of its own.
	other := b.login()
	other.cmd("SIZE old", "550 *")
	other.stored("STOR other", []byte("other"))
	b.ledger()
	b.p.signal(syscall.SIGTERM)
	b.p.ended(exitOK)
	disk.run(t, "mount", "-o", "loop", disk.image, disk.dir)
	b.want("old", []byte("old"))
	if strings.HasPrefix(got, "226 ") {
		b.want("new", []byte("new"))
	} else if !strings.HasPrefix(got, "4") && !strings.HasPrefix(got, "5") {
		t.Errorf("STOR: %s", got)
	}
	b.start()
	b.login()
}

// A disk that reads and does not write, as while a snapshot of it is made, makes the
// daemon one that is not ready, though nothing is written to learn that; and neither of
// its logs there keeps anybody for longer than a moment.
func TestDiskFrozen(t *testing.T) {
	t.Parallel()
	disk := newTestDisk(t, "ext4", 0)
	b := newFTPBoxWith(t, "", "", func(s *server) {
		s.lookFree.grace = 0 // not seconds
		cfg := *s.config()
		cfg.Server.StateDir = disk.dir
		s.current.Store(&cfg)
	})
	name := filepath.Join(disk.dir, "log")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	file := &logFile{f: f, disk: replyTime}
	write := func(line string, want error) {
		t.Helper()
		if _, err := io.WriteString(file, line); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", line, err, want)
		}
	}
	xferlog := newTransferLog(filepath.Join(disk.dir, "xferlog"), b.srv.log)
	write("before\n", nil)
	for deadline := time.Now().Add(replyTime); ; { // the look has a fifth of a second
		err := b.srv.notReady()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}

	thaw := disk.freeze(t)
	if err := b.srv.notReady(); err == nil || err.Error() != "the disk of the state directory stands still" {
		t.Errorf("frozen, and %v", err)
	}
	file.disk = time.Millisecond
	write("on its way\n", nil)
	write("lost\n", unix.EAGAIN)
	over := make(chan struct{})
	go func() {
		defer close(over)
		for range 3 { // the second waits for the first no more
			xferlog.add(transferEvent{host: "192.0.2.1", user: "ann", path: "/a", direction: 'i', time: time.Now(), complete: true})
		}
	}()
	select {
	case <-over:
	case <-time.After(replyTime):
		t.Error("a session waits for the transfer log")
	}

	thaw()
	for deadline := time.Now().Add(replyTime); ; {
		if file.turn.TryLock() {
			file.turn.Unlock()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the line does not get there")
		}
		runtime.Gosched()
	}
	file.disk = replyTime
	write("after\n", nil)
	if got, err := os.ReadFile(name); string(got) != "before\non its way\nafter\n" {
		t.Errorf("the log has %q, %v", got, err)
	}
	xferlog.turn <- struct{}{}
	<-xferlog.turn
	xferlog.add(transferEvent{host: "192.0.2.1", user: "ann", path: "/b", direction: 'i', time: time.Now(), complete: true})
	if got, err := os.ReadFile(xferlog.path); strings.Count(string(got), "\n") != 2 || err != nil {
		t.Errorf("the transfer log has %q, %v", got, err)
	}
	if !strings.Contains(b.log.String(), "lost=2") {
		t.Error("nobody is told of the lines that the transfer log lacks")
	}
	for deadline := time.Now().Add(replyTime); b.srv.notReady() != nil; {
		if time.Now().After(deadline) {
			t.Fatal(b.srv.notReady())
		}
	}
	// So does a write to the ledger that does not come back.
	long := time.Now().Add(-stuckAfter)
	b.srv.jails.ledger.begunAt.Store(&long)
	if b.srv.notReady() == nil {
		t.Error("the ledger's write does not come back, and the daemon says that it is ready")
	}
	b.srv.jails.ledger.begunAt.Store(nil)
}

// --- kinds of disk ---

// TestDiskKinds is the life cycle of uploads on file systems that lack one thing or the
// other: vfat and ramfs know no user attributes, vfat no hard links and no case. None
// of them is the one that the state directory is on.
func TestDiskKinds(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs", "vfat", "tmpfs", "ramfs"} {
		t.Run(kind, func(t *testing.T) {
			var dir string
			switch kind {
			case "tmpfs", "ramfs":
				if os.Getuid() != 0 {
					diskMissing(t, "mounting takes root")
				}
				dir = t.TempDir()
				if err := unix.Mount("berth", dir, kind, 0, ""); err != nil {
					diskMissing(t, "mount -t %s: %v", kind, err)
				}
				t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
			default:
				dir = newTestDisk(t, kind, 0).dir
			}
			for _, quota := range []string{"", "quota_bytes = \"1MiB\"\nquota_files = 20\n"} {
				t.Run(quota, func(t *testing.T) {
					diskLife(t, filepath.Join(dir, "home"+strconv.Itoa(len(quota))), quota, kind != "vfat" && kind != "ramfs")
				})
			}
		})
	}
}

// diskLife is everything that can happen to a file. marks tells whether the disk has user
// attributes.
func diskLife(t *testing.T, home, quota string, marks bool) {
	b := newDiskBox(t, home, quota)
	c := b.login()
	one, two := testBytes(70<<10), testBytes(300<<10)
	cut := func(command string, content []byte) {
		t.Helper()
		c.cmd("ALLO 20000", "200 *") // fits into the quota, and is never met
		if got := c.upload(command, content); !strings.HasPrefix(got, "426 ") {
			t.Errorf("%s, cut short: %s", command, got)
		}
	}
	c.stored("STOR a", one)
	b.want("a", one)
	c.stored("STOR a", two)
	b.want("a", two)
	c.stored("APPE a", one)
	b.want("a", append(bytes.Clone(two), one...))
	c.cmd("REST 1000", "350 *")
	c.stored("STOR a", one)
	b.want("a", append(bytes.Clone(two[:1000]), one...))
	b.ledger()

	// A new name, cut off and continued, twice.
	cut("STOR new", two[:1000])
	c.cmd("SIZE new", "213 1000")
	c.cmd("REST 1000", "350 *")
	cut("STOR new", two[1000:5000])
	if marks {
		c.cmd("SIZE new", "213 5000")
	} // else what arrived is kept aside, and 554 tells how much
	c.cmd("REST 5000", "350 *")
	c.stored("STOR new", two[5000:])
	b.want("new", two)
	b.ledger()

	// The same over a file that is there.
	c.stored("STOR old", one)
	cut("STOR old", two[:2000])
	c.cmd("SIZE old", fmt.Sprintf("213 %d", len(one)))
	b.want("old", one)
	c.cmd("REST 1999", "350 *")
	c.refused("STOR old", two[1999:], "554 *2000*")
	c.cmd("REST 2000", "350 *")
	c.stored("STOR old", two[2000:])
	b.want("old", two)
	b.ledger()

	c.stored("STOU", one)
	c.cmd("RNFR old", "350 *")
	c.cmd("RNTO new", "250 *")
	b.want("new", two)
	c.cmd("MKD dir", "257 *")
	c.cmd("RNFR new", "350 *")
	c.cmd("RNTO dir/new", "250 *")
	c.stored("STOR dir/"+strings.Repeat("n", 250), one)
	c.stored("STOR ..ü ", one)
	c.cmd("DELE dir/new", "250 *")
	c.cmd("RMD dir", "550 *")
	b.ledger()
	if quota != "" {
		c.refused("STOR a", testBytes(2<<20), "552 *")
		b.want("a", append(bytes.Clone(two[:1000]), one...))
		b.ledger()
	}
	// It is all there after a clean stop, and after none.
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		c.cmd("QUIT", "221 *")
		if b.p.signal(sig); sig == syscall.SIGTERM {
			b.p.ended(exitOK)
		} else {
			for range b.p.lines {
			}
		}
		b.start()
		c = b.login()
		b.ledger()
	}
}
