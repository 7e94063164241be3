// The proof with real clients: programs that people have installed, driven
// against the built binary over loopback, as a black box. This file may know
// design.md (command line, configuration, file names) and what each client can
// do; it must not call a function of the program. What counts is the disk: the
// bytes that are in the home after an upload and in the client's directory after a
// download, never what a client prints about itself.
//
// `go test` runs TestClientsSmoke only. BERTH_CLIENTS=1 runs everything and skips
// missing clients; BERTH_REQUIRE_CLIENTS=1 (CI) fails on a missing one.

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/sys/unix"
)

const (
	clientUser     = "ann"
	clientSlowUser = "slow"
	clientPassword = "berth-Test1"

	// clientTimeout ends one invocation of a client that hangs: 10 MiB over
	// loopback takes well under a second, so what takes this long never ends.
	clientTimeout = 2 * time.Minute

	// clientSlowRate and the sizes leave seconds to interrupt a transfer in. An upload must also be more than what fits in
	// the kernel's buffers between client and server, or the client is done before it is interrupted.
	clientSlowRate = "1MiB"
	clientSlowGet  = 8 << 20
	clientSlowPut  = 48 << 20

	clientManyNames = 5000
	clientSessions  = 20
)

// clientSizes are the empty file, the smallest, one TCP segment, one socket
// buffer or splice pipe, one byte more, and many of them.
var clientSizes = []int{0, 1, 1460, 65536, 65537, 10 << 20}

// clientNames are file names that servers are known to get wrong (field.md 3a,
// rclone's list of faults): each must be taken literally.
var clientNames = []string{
	" lead", "trail ", "two  spaces", "star*", "br[ack]et", "que?ry", "{a,b}",
	"-dash", ".dot", "~tilde", `quo"te`, "apos'trophe", `back\slash`,
	"semi;colon", "per%cent", "hash#", "dol$lar", "amp&x", "plus+", "bang!x", "tab\tx", ">gt", "|pipe",
	"ü", "日本", "😀.txt", "latin-\xfc\xe9.txt",
}

// clientFile is one file to move: its name on the server, and where it is or goes locally.
type clientFile struct{ name, local string }

// clientDriver knows how one client is called. put and get move all files in as few invocations as
// the client allows, so that several transfers share a session.
type clientDriver struct {
	name     string
	needs    []string // commands that must be installed
	security []string // "plain", "tls" (AUTH TLS), "implicit"
	families []string // "ipv4", "ipv6"
	modes    []string // "passive", "active"; "passive-pasv" and "active-port" avoid EPSV and EPRT
	put      func(s *clientSeat, dir string, files []clientFile) error
	get      func(s *clientSeat, dir string, files []clientFile) error
	list     func(s *clientSeat, kind, dir string) (string, error)
	lists    []string          // verbs that list can bring about: "NLST", "LIST", "MLSD"
	cannot   map[string]string // name or "put "+name or "get "+name: why this client cannot say it
	extra    map[string]func(t *testing.T, s *clientSeat)

	// broken runs what is left to see, and says so, where this version of the client is known to fail with every server.
	broken func(t *testing.T, s *clientSeat) bool
}

var (
	clientAllSecurity = []string{"plain", "tls", "implicit"}
	clientBoth        = []string{"ipv4", "ipv6"}
)

func TestClients(t *testing.T) {
	require := os.Getenv("BERTH_REQUIRE_CLIENTS") == "1"
	if !require && os.Getenv("BERTH_CLIENTS") != "1" {
		t.Skip("set BERTH_CLIENTS=1 to run the real clients, BERTH_REQUIRE_CLIENTS=1 to insist on all of them")
	}
	rig := startClientRig(t)
	rig.makeMany(t)
	for _, d := range clientDrivers() {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			for _, c := range d.needs {
				if _, err := rig.lookPath(c); err != nil {
					rig.missing(t, require, fmt.Sprintf("%s is not installed: %v", c, err))
				}
			}
			for _, security := range d.security {
				t.Run(security, func(t *testing.T) {
					t.Parallel()
					for _, family := range d.families {
						t.Run(family, func(t *testing.T) {
							t.Parallel()
							if _, ok := rig.control[family]; !ok {
								rig.missing(t, require, "this machine has no "+family+" loopback")
							}
							for _, mode := range d.modes {
								if family == "ipv6" && strings.Contains(mode, "-") {
									continue // PASV and PORT have no form for IPv6
								}
								t.Run(mode, func(t *testing.T) {
									t.Parallel()
									runClientSeat(t, &clientSeat{rig: rig, driver: d, security: security, family: family, mode: mode, user: clientUser})
								})
							}
						})
					}
				})
			}
		})
	}
}

// TestClientsSmoke is what plain `go test` runs of this file: one upload and one
// download by two clients, plain and TLS.
func TestClientsSmoke(t *testing.T) {
	rig := startClientRig(t)
	for _, d := range clientDrivers() {
		if d.name != "curl" && d.name != "ftplib" {
			continue
		}
		for _, security := range []string{"plain", "tls"} {
			t.Run(d.name+"/"+security, func(t *testing.T) {
				if _, err := rig.lookPath(d.needs[0]); err != nil {
					t.Skipf("%s is not installed: %v", d.needs[0], err)
				}
				s := &clientSeat{rig: rig, driver: d, security: security, family: "ipv4", mode: "passive", user: clientUser}
				s.open(t)
				clientCaseSizes(t, s, []int{0, 65537})
			})
		}
	}
}

// runClientSeat runs every case of one client in one way of connecting.
func runClientSeat(t *testing.T, s *clientSeat) {
	if s.driver.broken != nil && s.driver.broken(t, s) {
		return
	}
	if !t.Run("sizes", func(t *testing.T) { clientCaseSizes(t, s.fork(t), clientSizes) }) {
		t.Fatal("plain transfers fail: the other cases, most of them slow to fail, are left out")
	}
	t.Run("names", func(t *testing.T) { clientCaseNames(t, s.fork(t)) })
	for _, kind := range s.driver.lists {
		t.Run("many-"+kind, func(t *testing.T) { clientCaseMany(t, s.fork(t), kind) })
	}
	names := make([]string, 0, len(s.driver.extra))
	for name := range s.driver.extra {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		t.Run(name, func(t *testing.T) { s.driver.extra[name](t, s.fork(t)) })
	}
}

// --- cases that every client goes through ---

// clientCaseSizes uploads a file of each size and compares the disk, then downloads files of the
// same sizes but other content and compares what the client wrote.
func clientCaseSizes(t *testing.T, s *clientSeat, sizes []int) {
	var up, down []clientFile
	for i, size := range sizes {
		name := fmt.Sprintf("size-%d.bin", size)
		if s.driver.put != nil {
			up = append(up, clientFile{"up-" + name, s.local("up-"+name, clientBytes(uint64(i), size))})
		}
		s.remote(t, "down-"+name, clientBytes(uint64(1000+i), size))
		down = append(down, clientFile{"down-" + name, filepath.Join(s.dir, "got-"+name)})
	}
	s.putAndCompare(t, up)
	s.getAndCompare(t, down)
}

// clientCaseNames moves a small file under each awkward name in both directions.
func clientCaseNames(t *testing.T, s *clientSeat) {
	var up, down []clientFile
	for i, name := range clientNames {
		content := []byte(fmt.Sprintf("%d %q", i, name))
		if s.driver.put != nil && s.can(t, "put", name) {
			up = append(up, clientFile{name, s.local(fmt.Sprintf("up-%d", i), content)})
		}
	}
	s.putAndCompare(t, up)

	s.subdir += "-get"
	for i, name := range clientNames {
		if s.can(t, "get", name) {
			s.remote(t, name, []byte(fmt.Sprintf("%q %d", name, i)))
			down = append(down, clientFile{name, filepath.Join(s.dir, fmt.Sprintf("got-%d", i))})
		}
	}
	s.getAndCompare(t, down)
}

// clientCaseMany counts the names of a large directory in what the client got.
func clientCaseMany(t *testing.T, s *clientSeat, kind string) {
	out, err := s.driver.list(s, kind, "many")
	if err != nil {
		t.Fatalf("%s of %d names: %v", kind, clientManyNames, err)
	}
	seen := make(map[string]bool)
	for _, name := range clientManyPattern.FindAllString(out, -1) {
		seen[name] = true
	}
	if len(seen) != clientManyNames {
		t.Errorf("%s lists %d different names; want %d; it begins %.200q", kind, len(seen), clientManyNames, out)
	}
}

var clientManyPattern = regexp.MustCompile(`entry-[0-9]{4} x\.dat|entry-[0-9]{4}%20x\.dat`)

// putAndCompare uploads and compares the files in the home.
func (s *clientSeat) putAndCompare(t *testing.T, files []clientFile) {
	t.Helper()
	if len(files) == 0 {
		return
	}
	if err := os.MkdirAll(s.home(""), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.driver.put(s, s.subdir, files); err != nil {
		t.Errorf("put: %v", err)
	}
	for _, f := range files {
		clientCompare(t, "uploaded "+strconv.Quote(f.name), s.home(f.name), f.local)
	}
}

// getAndCompare downloads and compares the files the client wrote.
func (s *clientSeat) getAndCompare(t *testing.T, files []clientFile) {
	t.Helper()
	if err := s.driver.get(s, s.subdir, files); err != nil {
		t.Errorf("get: %v", err)
	}
	for _, f := range files {
		clientCompare(t, "downloaded "+strconv.Quote(f.name), f.local, s.home(f.name))
	}
}

// clientManySessions runs twenty processes of one client at once, each with an upload and a download.
func clientManySessions(t *testing.T, s *clientSeat) {
	if s.mode != "passive" || s.family != "ipv4" || s.security == "implicit" {
		t.Skip("once for plain and once for TLS is enough")
	}
	s.remote(t, "shared.bin", clientBytes(7, 1<<20))
	var wg sync.WaitGroup
	for i := range clientSessions {
		up := clientFile{fmt.Sprintf("up-%d.bin", i), s.local(fmt.Sprintf("up-%d.bin", i), clientBytes(uint64(100+i), 1<<20))}
		down := clientFile{"shared.bin", filepath.Join(s.dir, fmt.Sprintf("got-%d.bin", i))}
		wg.Go(func() {
			if err := s.driver.put(s, s.subdir, []clientFile{up}); err != nil {
				t.Errorf("session %d: put: %v", i, err)
			}
			if err := s.driver.get(s, s.subdir, []clientFile{down}); err != nil {
				t.Errorf("session %d: get: %v", i, err)
			}
			clientCompare(t, "uploaded "+up.name, s.home(up.name), up.local)
			clientCompare(t, "downloaded "+down.local, down.local, s.home(down.name))
		})
	}
	wg.Wait()
}

// --- transfers interrupted by Ctrl-C on a terminal ---

// abortGet presses Ctrl-C in the middle of a download; the next transfers of the same
// session must work. get is formatted with the local directory and the remote one; after also with a file to upload.
func (s *clientSeat) abortGet(t *testing.T, name string, args []string, head, get, after string) {
	s.remote(t, "big.bin", clientBytes(8, clientSlowGet))
	s.remote(t, "small.bin", clientBytes(9, 3000))
	up := s.local("after.bin", clientBytes(10, 3000))
	tty := s.terminal(t, name, args...)
	tty.say(head + fmt.Sprintf(get, s.dir, s.subdir))
	big := filepath.Join(s.dir, "big.bin")
	clientPoll(t, "the download to begin", func() bool {
		info, err := os.Stat(big)
		return err == nil && info.Size() > 64<<10
	}, tty.text)
	tty.say("\x03")
	tty.say(fmt.Sprintf(after, s.dir, s.subdir, up) + "quit\n")
	tty.wait(t)
	if info, err := os.Stat(big); err != nil || info.Size() >= clientSlowGet {
		t.Errorf("the interrupted download is whole (%v): it was not interrupted", err)
	}
	clientCompare(t, "download after the interrupted one", filepath.Join(s.dir, "small.bin"), s.home("small.bin"))
	clientCompare(t, "upload after the interrupted one", s.home("after.bin"), up)
	tty.logIfFailed(t)
}

// abortPut does the same to an upload over an existing file. With keepsOld the client tells the
// server that it gave up, and the old content must be there.
func (s *clientSeat) abortPut(t *testing.T, name string, args []string, head, put, after string, keepsOld bool) {
	old := clientBytes(11, 5000)
	s.remote(t, "big.bin", old)
	s.remote(t, "small.bin", clientBytes(9, 3000))
	content := clientBytes(12, clientSlowPut)
	local := s.local("big.bin", content)
	tty := s.terminal(t, name, args...)
	tty.say(head + fmt.Sprintf(put, local, s.subdir))
	s.awaitUpload(t, "big.bin", int64(len(old)))
	tty.say("\x03")
	tty.say(fmt.Sprintf(after, local, s.subdir, s.dir) + "quit\n")
	tty.wait(t)
	clientCompare(t, "download after the interrupted upload", filepath.Join(s.dir, "small.bin"), s.home("small.bin"))
	s.awaitSettled(t)
	got, err := os.ReadFile(s.home("big.bin"))
	switch {
	case err != nil:
		t.Error(err)
	case bytes.Equal(got, old):
	case keepsOld:
		t.Errorf("the interrupted upload left %d bytes in place of the old file's %d", len(got), len(old))
	case len(got) >= len(content) || !bytes.HasPrefix(content, got):
		t.Errorf("the interrupted upload left %d bytes that are neither the old file nor a beginning of the new one", len(got))
	}
	tty.logIfFailed(t)
}

// awaitUpload waits until bytes of an upload to name have reached the disk, wherever the server keeps them.
func (s *clientSeat) awaitUpload(t *testing.T, name string, oldSize int64) {
	t.Helper()
	clientPoll(t, "the upload to reach the disk", func() bool {
		entries, _ := os.ReadDir(s.home(""))
		for _, e := range entries {
			info, err := e.Info()
			if err == nil && info.Size() > 32<<10 && (e.Name() != name || info.Size() != oldSize) {
				return true
			}
		}
		return false
	}, nil)
}

// awaitSettled waits until the server has no session of the slow user any more, so that an
// interrupted upload has been dealt with. Only metrics tell that from outside.
func (s *clientSeat) awaitSettled(t *testing.T) {
	t.Helper()
	clientPoll(t, "active uploads to end (berth_transfers_active)", func() bool {
		n, err := s.rig.gauge("berth_transfers_active", `direction="upload"`)
		return err == nil && n == 0
	}, nil)
}

// skipUnlessFirst keeps the slow cases to one family and mode.
func (s *clientSeat) skipUnlessFirst(t *testing.T) {
	if s.family != "ipv4" || s.mode != "passive" || s.security == "implicit" {
		t.Skip("takes seconds; done once for plain and once for TLS")
	}
}

func (s *clientSeat) skipUnlessPassive(t *testing.T) {
	if s.mode != "passive" {
		t.Skip("takes seconds; done in passive mode")
	}
}

// --- a terminal for clients that handle Ctrl-C only on one ---

// clientTTY is a program running on a pseudo-terminal.
type clientTTY struct {
	master *os.File
	done   chan error
	cancel func()
	mu     sync.Mutex // guards screen
	screen bytes.Buffer
}

func (s *clientSeat) terminal(t *testing.T, name string, args ...string) *clientTTY {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	ctx, cancel := context.WithTimeout(context.Background(), clientTimeout)
	cmd := s.command(ctx, name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	tty := &clientTTY{master: master, done: make(chan error, 1), cancel: cancel}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			tty.mu.Lock()
			tty.screen.Write(buf[:n])
			tty.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	go func() { tty.done <- cmd.Wait() }()
	t.Cleanup(func() { cancel(); _ = master.Close() })
	return tty
}

// say types text.
func (tty *clientTTY) say(text string) { _, _ = io.WriteString(tty.master, text) }

// text is what is on the screen.
func (tty *clientTTY) text() string {
	tty.mu.Lock()
	defer tty.mu.Unlock()
	return tty.screen.String()
}

// wait waits for the program's end; clientTimeout has it killed.
func (tty *clientTTY) wait(t *testing.T) {
	t.Helper()
	if err := <-tty.done; err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !exit.Exited() {
			t.Errorf("the client did not end by itself: %v; screen:\n%s", err, tty.text())
		}
	}
}

func (tty *clientTTY) logIfFailed(t *testing.T) {
	if t.Failed() {
		t.Logf("screen:\n%s", tty.text())
	}
}

// --- the seat: one client, one way of connecting, one directory on each side ---

type clientSeat struct {
	rig                    *clientRig
	driver                 clientDriver
	security, family, mode string
	user                   string
	subdir                 string // the case's own directory in the home
	dir                    string // the case's own local directory
}

// open gives the seat directories of its own.
func (s *clientSeat) open(t *testing.T) {
	t.Helper()
	s.dir = t.TempDir()
	s.subdir = "case-" + clientToken()
	if err := os.MkdirAll(s.home(""), 0o755); err != nil {
		t.Fatal(err)
	}
}

// fork is a seat for another case.
func (s *clientSeat) fork(t *testing.T) *clientSeat {
	t.Helper()
	c := *s
	c.open(t)
	return &c
}

// home is where a file of the case is on the server's disk.
func (s *clientSeat) home(name string) string {
	return filepath.Join(s.rig.state, "homes", s.user) + "/" + s.subdir + "/" + name
}

// addr is the listener for this seat.
func (s *clientSeat) addr() string {
	if s.security == "implicit" {
		return s.rig.implicit[s.family]
	}
	return s.rig.control[s.family]
}

// can skips a name that the client itself cannot express.
func (s *clientSeat) can(t *testing.T, verb, name string) bool {
	for _, key := range []string{name, verb + " " + name} {
		if why, ok := s.driver.cannot[key]; ok {
			t.Logf("%s %q left out: %s", verb, name, why)
			return false
		}
	}
	return true
}

// local writes a file in the case's local directory.
func (s *clientSeat) local(name string, content []byte) string {
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		panic(err) // the temporary directory is gone: nothing can go on
	}
	return path
}

// remote writes a file in the home, behind the server's back.
func (s *clientSeat) remote(t *testing.T, name string, content []byte) {
	t.Helper()
	path := s.home(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// command is a client in a scrubbed environment and a process group of its own, which is killed when ctx ends.
func (s *clientSeat) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	path, err := s.rig.lookPath(name)
	if err != nil {
		path = name
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = s.dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "TMPDIR=" + s.dir, "LANG=C.UTF-8", "LC_ALL=C.UTF-8", "TERM=dumb",
		"SSL_CERT_FILE=" + s.rig.ca, // the only way to give rclone's FTP backend a CA
	}
	if s.driver.name != "rclone" {
		cmd.Env = cmd.Env[:len(cmd.Env)-1]
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 30 * time.Second
	return cmd
}

// run runs a client to its end. An error carries what the client printed on both outputs.
func (s *clientSeat) run(stdin, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), clientTimeout)
	defer cancel()
	cmd := s.command(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("not done after %v: %w", clientTimeout, err)
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s %s", name, err, clientClip(stderr.String()), clientClip(stdout.String()))
	}
	return stdout.String(), nil
}

// start starts a client and leaves it running; done gets its end.
func (s *clientSeat) start(stdin io.Reader, name string, args ...string) (*exec.Cmd, *bytes.Buffer, chan error) {
	ctx, cancel := context.WithTimeout(context.Background(), clientTimeout)
	cmd := s.command(ctx, name, args...)
	out := new(bytes.Buffer)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, out, out
	done := make(chan error, 1)
	if err := cmd.Start(); err != nil {
		cancel()
		done <- err
		return cmd, out, done
	}
	go func() { defer cancel(); done <- cmd.Wait() }()
	return cmd, out, done
}

func clientClip(text string) string {
	if len(text) > 1500 {
		return text[:1500] + "…"
	}
	return strings.TrimSpace(text)
}

// --- the rig: the built binary, serving ---

type clientRig struct {
	state    string            // state_dir
	ca       string            // the certificate that the server made, trusted as its own CA
	control  map[string]string // family: HOST:PORT
	implicit map[string]string
	http     string
	log      string
}

// startClientRig builds the program, adds the users, starts `berth serve` and ends it when the test does.
// At the end no session, staging file or panic may be left.
func startClientRig(t *testing.T) *clientRig {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "berth")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	rig := &clientRig{
		state: filepath.Join(dir, "state"), ca: filepath.Join(dir, "state", "tls", "cert.pem"), log: filepath.Join(dir, "serve.log"),
		control: make(map[string]string), implicit: make(map[string]string),
	}
	var control, implicit []string
	for family, host := range map[string]string{"ipv4": "127.0.0.1", "ipv6": "::1"} {
		one, err := clientFreePort(host)
		if err != nil {
			continue // no IPv6 here: TestClients says so
		}
		two, err := clientFreePort(host)
		if err != nil {
			t.Fatal(err)
		}
		rig.control[family] = net.JoinHostPort(host, strconv.Itoa(one))
		rig.implicit[family] = net.JoinHostPort(host, strconv.Itoa(two))
		control, implicit = append(control, strconv.Quote(rig.control[family])), append(implicit, strconv.Quote(rig.implicit[family]))
	}
	port, err := clientFreePort("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	rig.http = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	users := filepath.Join(dir, "users.d")
	config := filepath.Join(dir, "berth.toml")
	text := fmt.Sprintf(`[server]
state_dir = %q
users_dir = %q
drain = "5s"

[listen]
control = [%s]
tls = [%s]
datagram = []
local = []
http = [%q]

[passive]
ports = ""

[limits]
sessions_per_address = 1000

[log]
format = "text"
level = "debug"
`, rig.state, users, strings.Join(control, ", "), strings.Join(implicit, ", "), rig.http)
	for _, d := range []string{rig.state, users} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	// One user made by the command, one by hand: both ways are promised.
	ctx, cancel := context.WithTimeout(context.Background(), clientTimeout)
	defer cancel()
	add := exec.CommandContext(ctx, binary, "user", "add", clientUser, "--config", config, "--password-stdin")
	add.Stdin = strings.NewReader(clientPassword + "\n")
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("berth user add %s: %v\n%s", clientUser, err, out)
	}
	slow := fmt.Sprintf("password = %q\nsessions = 100\ndownload_rate = %q\nupload_rate = %q\n",
		clientArgon2id(clientPassword), clientSlowRate, clientSlowRate)
	if err := os.WriteFile(filepath.Join(users, clientSlowUser+".toml"), []byte(slow), 0o600); err != nil {
		t.Fatal(err)
	}
	rig.raiseSessions(t, filepath.Join(users, clientUser+".toml"))

	log, err := os.Create(rig.log)
	if err != nil {
		t.Fatal(err)
	}
	serve := exec.Command(binary, "serve", "--config", config)
	serve.Stdout, serve.Stderr = log, log
	serve.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// The server dies with the test even where no cleanup runs, as after -timeout. The kernel watches the thread that
	// started it, so that thread stays.
	serve.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		started <- serve.Start()
		ended <- serve.Wait()
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		rig.checkQuiet(t)
		_ = serve.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("berth serve ended with %v after SIGTERM; want 0", err)
			}
		case <-time.After(time.Minute):
			_ = syscall.Kill(-serve.Process.Pid, syscall.SIGKILL)
			<-ended
			t.Error("berth serve was still there a minute after SIGTERM")
		}
		_ = log.Close()
		rig.checkDisk(t)
		rig.checkLog(t)
	})
	for _, addr := range rig.control {
		clientPoll(t, "the greeting on "+addr, func() bool { return clientGreets(addr) }, rig.tail)
	}
	clientPoll(t, "the certificate "+rig.ca, func() bool { _, err := os.Stat(rig.ca); return err == nil }, rig.tail)
	return rig
}

// raiseSessions lifts the default of ten sessions a user, which the cases with twenty would meet.
func (rig *clientRig) raiseSessions(t *testing.T, file string) {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^sessions\s*=.*\n?`)
	b = append([]byte("sessions = 200\n"), line.ReplaceAll(b, nil)...)
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// makeMany fills the directory that the listing cases count.
func (rig *clientRig) makeMany(t *testing.T) {
	dir := filepath.Join(rig.state, "homes", clientUser, "many")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range clientManyNames {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("entry-%04d x.dat", i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// checkQuiet waits for the sessions to be gone and compares what is left with nothing.
func (rig *clientRig) checkQuiet(t *testing.T) {
	var n float64
	var err error
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		if n, err = rig.gauge("berth_sessions", ""); err == nil && n == 0 {
			return
		}
		<-time.After(50 * time.Millisecond)
	}
	t.Errorf("berth_sessions = %v, %v after all clients ended; want 0", n, err)
}

// checkDisk looks for staging files that nobody cleans up.
func (rig *clientRig) checkDisk(t *testing.T) {
	_ = filepath.WalkDir(filepath.Join(rig.state, "homes"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), ".berth-") && !rig.partialAllowed(path) {
			t.Errorf("left behind: %s", path)
		}
		return nil
	})
}

// partialAllowed: what an interrupted upload over an existing file brought is kept for partial_ttl (design.md 5); only
// the slow user's uploads are interrupted here.
func (rig *clientRig) partialAllowed(path string) bool {
	return strings.HasPrefix(path, filepath.Join(rig.state, "homes", clientSlowUser)+"/")
}

func (rig *clientRig) checkLog(t *testing.T) {
	b, err := os.ReadFile(rig.log)
	if err != nil {
		t.Error(err)
	}
	if bytes.Contains(b, []byte("panic")) || bytes.Contains(b, []byte("goroutine ")) {
		t.Errorf("the server panicked:\n%s", clientClip(string(b)))
	}
	if bytes.Contains(b, []byte(clientPassword)) {
		t.Error("the server logged a password")
	}
	if t.Failed() {
		t.Logf("the server's log ends:\n%s", rig.tail())
	}
}

func (rig *clientRig) tail() string {
	b, _ := os.ReadFile(rig.log)
	if len(b) > 4000 {
		b = b[len(b)-4000:]
	}
	return string(b)
}

// gauge adds up the samples of one metric whose labels contain label.
func (rig *clientRig) gauge(name, label string) (float64, error) {
	client := http.Client{Timeout: 30 * time.Second}
	resp, err := client.Get("http://" + rig.http + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	sum, found := 0.0, false
	scan := bufio.NewScanner(resp.Body)
	for scan.Scan() {
		rest, ok := strings.CutPrefix(scan.Text(), name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		found = true
		labels, value := "", strings.TrimSpace(rest)
		if i := strings.LastIndexByte(rest, '}'); i >= 0 {
			labels, value = rest[:i], strings.TrimSpace(rest[i+1:])
		}
		if !strings.Contains(labels, label) {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("%q: %w", scan.Text(), err)
		}
		sum += n
	}
	if err := scan.Err(); err != nil {
		return 0, err
	}
	if !found {
		return 0, fmt.Errorf("no %s in /metrics", name)
	}
	return sum, nil
}

// lookPath prefers the system's Python to one that a version manager wraps in a script.
func (rig *clientRig) lookPath(name string) (string, error) {
	if name == "python3" {
		if _, err := os.Stat("/usr/bin/python3"); err == nil {
			return "/usr/bin/python3", nil
		}
	}
	return exec.LookPath(name)
}

func (rig *clientRig) missing(t *testing.T, require bool, why string) {
	t.Helper()
	if require {
		t.Fatal(why)
	}
	t.Skip(why)
}

// --- small things ---

// clientGreets says whether an FTP greeting comes from addr.
func clientGreets(addr string) bool {
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	line, _ := bufio.NewReader(conn).ReadString('\n')
	_, _ = io.WriteString(conn, "QUIT\r\n")
	return strings.HasPrefix(line, "220")
}

// clientPoll waits for what only another process can bring about. detail is added to the failure.
func clientPoll(t *testing.T, what string, ready func() bool, detail func() string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ready() {
		if time.Now().After(deadline) {
			text := ""
			if detail != nil {
				text = ":\n" + detail()
			}
			t.Fatalf("waited a minute for %s%s", what, text)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// clientFreePort is a TCP port that was free a moment ago.
func clientFreePort(host string) (port int, err error) {
	for range 100 {
		port = 20000 + int(portsTried.Add(1))%portsBelow
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, err
}

// clientToken is a short random name.
func clientToken() string { return strings.ToLower(rand.Text()[:8]) }

// clientBytes is the same noise for the same seed.
func clientBytes(seed uint64, size int) []byte {
	b := make([]byte, size)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	_, _ = mathrand.NewChaCha8(key).Read(b)
	return b
}

// clientArgon2id writes a password as users.d has it (design.md section 7).
func clientArgon2id(password string) string {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt)
	hash := argon2.IDKey([]byte(password), salt, 2, 19456, 1, 32)
	enc := base64.RawStdEncoding
	return "$argon2id$v=19$m=19456,t=2,p=1$" + enc.EncodeToString(salt) + "$" + enc.EncodeToString(hash)
}

func clientSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return fmt.Sprintf("%d bytes, SHA-256 %.12s…", n, hex.EncodeToString(h.Sum(nil))), err
}

func clientCompare(t *testing.T, what, got, want string) {
	t.Helper()
	w, err := clientSum(want)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if g, err := clientSum(got); err != nil || g != w {
		t.Errorf("%s: %s, %v; want %s", what, g, err, w)
	}
}

func clientCompareBytes(t *testing.T, what, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, %v; want the %d that were there", what, len(got), err, len(want))
	}
}

// clientTree makes a small tree with an empty directory, an empty file and names with spaces and UTF-8.
func clientTree(t *testing.T, root string) {
	t.Helper()
	files := map[string]int{"a.txt": 10, "empty": 0, "sub/b.bin": 70_000, "sub/deep er/ü 日本.txt": 5, "sub/.hidden": 3}
	if err := os.MkdirAll(filepath.Join(root, "sub", "empty dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	old := time.Date(2021, 3, 4, 5, 6, 7, 0, time.UTC)
	for name, size := range files {
		path := filepath.Join(root, name)
		err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, clientBytes(uint64(size), size), 0o644), os.Chtimes(path, old, old))
		if err != nil {
			t.Fatal(err)
		}
	}
}

// clientCompareTrees compares names, kinds, contents and the times of files to the second.
func clientCompareTrees(t *testing.T, what, got, want string) {
	t.Helper()
	read := func(root string) map[string]string {
		all := make(map[string]string)
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name, _ := filepath.Rel(root, path)
			if d.IsDir() {
				all[name] = "directory"
				return nil
			}
			sum, err := clientSum(path)
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil {
				all[name] = sum + " " + info.ModTime().UTC().Format(time.RFC3339)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		return all
	}
	g, w := read(got), read(want)
	for name := range w {
		if g[name] != w[name] {
			t.Errorf("%s: %q is %q; want %q", what, name, g[name], w[name])
		}
	}
	for name := range g {
		if _, ok := w[name]; !ok {
			t.Errorf("%s: %q should not be there", what, name)
		}
	}
}
