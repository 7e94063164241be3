package main

// put and get over lines that break. A proxy of our own between the client and a real
// server cuts, stalls or damages one direction of a connection behind any byte; the client
// is the program's own, in this process, from its words on. What must hold each time is in
// nameWatch, faultWorld.complete and faultWorld.settled: the name has the old file or the new
// one at every moment, the new one with exit code 0, and nothing is left behind. Servers that are none are in
// client_faults_boxes_test.go, trouble on this machine in client_faults_here_test.go.
//
// Each test tries a spread of bytes; BERTH_FAULTS=all tries every one.

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// everyFault tells whether every byte is to be tried.
func everyFault() bool { return os.Getenv("BERTH_FAULTS") == "all" }

// faultStride is the step between two of n bytes that are tried.
func faultStride(n int64) int64 {
	if everyFault() {
		return 1
	}
	return n/11 | 1
}

// --- the proxy ---

// A faultKind is what happens to a connection.
type faultKind byte

const (
	faultNone    faultKind = iota
	faultReset             // RST both ways
	faultEnd               // FIN both ways; what comes after it is taken and goes nowhere
	faultStall             // nothing moves any more, until the client connects anew
	faultHang              // nothing moves any more, and the server never hears of the end
	faultDamage            // one byte is another, and all goes on
	faultSpoil             // a byte in each copy of find is another
	faultDribble           // every byte by itself
)

func (k faultKind) String() string {
	return [...]string{"none", "reset", "end", "stall", "hang", "damage", "spoil", "dribble"}[k]
}

// A fault happens to one connection behind its byte at of one direction.
type fault struct {
	kind faultKind
	up   bool // of what the client sends
	at   int64
	find []byte
}

func (f fault) String() string {
	direction := "down"
	if f.up {
		direction = "up"
	}
	return fmt.Sprintf("%v %s %d", f.kind, direction, f.at)
}

// A faultProxy stands between clients and a server. plan says what happens to which
// connection, counted from 0; look is called before anything is passed on.
type faultProxy struct {
	ln   net.Listener
	to   string
	plan func(n int) fault
	look func()
	wait func() // before another connection is made to the server; nil: nothing
	note bool   // what is passed on is kept in sent
	quit chan struct{}
	runs sync.WaitGroup

	mu    sync.Mutex
	conns []*faultConn
}

// A faultConn is one connection through the proxy.
type faultConn struct {
	p              *faultProxy
	f              fault
	client, server *net.TCPConn
	up, down       atomic.Int64 // passed on
	sent           [2][]byte    // down and up, with note; each its pass's own until close
	struck         atomic.Bool
	ended          chan struct{} // once it is cut or has stalled
	once           sync.Once
}

// newFaultProxy makes one; set may change it before it begins.
func newFaultProxy(t testing.TB, to string, plan func(n int) fault, set ...func(p *faultProxy)) *faultProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &faultProxy{ln: ln, to: to, plan: plan, quit: make(chan struct{})}
	for _, set := range set {
		set(p)
	}
	p.runs.Go(p.accept)
	return p
}

// onFirst is a plan for the first connection alone, always one for all.
func onFirst(f fault) func(int) fault {
	return func(n int) fault {
		if n == 0 {
			return f
		}
		return fault{}
	}
}

func always(f fault) func(int) fault { return func(int) fault { return f } }

func (p *faultProxy) port() string {
	_, port, _ := net.SplitHostPort(p.ln.Addr().String())
	return port
}

func (p *faultProxy) accept() {
	for {
		client, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		n := len(p.conns)
		for _, c := range p.conns {
			if c.f.kind == faultStall && c.struck.Load() {
				c.server.Close()
			}
		}
		p.mu.Unlock()
		if n > 0 && p.wait != nil {
			p.wait()
		}
		server, err := net.Dial("tcp", p.to)
		if err != nil {
			client.Close()
			return
		}
		c := &faultConn{p: p, f: p.plan(n), client: client.(*net.TCPConn), server: server.(*net.TCPConn), ended: make(chan struct{})}
		p.mu.Lock()
		p.conns = append(p.conns, c)
		p.mu.Unlock()
		p.runs.Go(func() { c.pass(c.client, c.server, true, &c.up) })
		p.runs.Go(func() { c.pass(c.server, c.client, false, &c.down) })
	}
}

// close ends everything, and waits for it.
func (p *faultProxy) close() {
	p.ln.Close()
	close(p.quit)
	p.mu.Lock()
	conns := p.conns
	p.mu.Unlock()
	for _, c := range conns {
		c.client.Close()
		c.server.Close()
	}
	p.runs.Wait()
}

// passed is how much went through in each direction, on all connections or on one.
func (p *faultProxy) passed(of ...int) (up, down int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n, c := range p.conns {
		if len(of) == 0 || of[0] == n {
			up += c.up.Load()
			down += c.down.Load()
		}
	}
	return up, down
}

// count is how many connections there were.
func (p *faultProxy) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// struck tells whether the fault has happened.
func (p *faultProxy) struck() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		if c.struck.Load() {
			return true
		}
	}
	return false
}

// pass moves one direction.
func (c *faultConn) pass(from, to *net.TCPConn, up bool, passed *atomic.Int64) {
	mine := c.f.kind != faultNone && c.f.up == up
	buf := make([]byte, 64<<10)
	for {
		room := buf
		if mine && c.f.kind == faultDribble && passed.Load() >= c.f.at {
			room = buf[:1]
		}
		if mine && c.f.kind < faultDamage {
			left := c.f.at - passed.Load()
			if left == 0 {
				c.strike()
				return
			}
			room = buf[:min(left, int64(len(buf)))]
		}
		n, err := from.Read(room)
		select {
		case <-c.ended:
			if c.f.kind == faultEnd {
				io.Copy(io.Discard, from)
			}
			return
		default:
		}
		if at := c.f.at - passed.Load(); mine && c.f.kind == faultDamage && at >= 0 && at < int64(n) {
			buf[at] ^= 0x04
			c.struck.Store(true)
		}
		if mine && c.f.kind == faultSpoil {
			if i := bytes.Index(buf[:n], c.f.find); i >= 0 {
				buf[i+int(c.f.at)] ^= 0x04
			}
		}
		if n > 0 {
			if c.p.look != nil {
				c.p.look()
			}
			if c.p.note {
				kept := &c.sent[0]
				if up {
					kept = &c.sent[1]
				}
				*kept = append(*kept, buf[:n]...)
			}
			if _, werr := to.Write(buf[:n]); werr != nil {
				from.Close()
				return
			}
			passed.Add(int64(n))
		}
		if errors.Is(err, io.EOF) {
			to.CloseWrite()
			return
		}
		if err != nil {
			to.SetLinger(0)
			to.Close()
			return
		}
	}
}

// strike is the fault, for those that end something.
func (c *faultConn) strike() {
	if c.p.look != nil {
		c.p.look()
	}
	c.struck.Store(true)
	c.once.Do(func() { close(c.ended) })
	switch c.f.kind {
	case faultReset:
		for _, conn := range []*net.TCPConn{c.client, c.server} {
			conn.SetLinger(0)
			conn.Close()
		}
	case faultEnd:
		c.client.CloseWrite()
		c.server.CloseWrite()
		from := c.server
		if c.f.up {
			from = c.client
		}
		io.Copy(io.Discard, from)
	case faultStall, faultHang:
		<-c.p.quit
	}
}

// --- the world ---

// A faultWorld is a server with the user ann, and a directory for the client.
type faultWorld struct {
	t    *testing.T
	b    *ftpBox
	addr string
	dir  string // the client's
	note bool   // of the proxies to come
	wait bool   // they connect again once the server knows that the last connection is lost
}

const faultListen = "limits.sessions_per_address = 500\nserver.drain = \"5s\"\ntransfer.durable = false\n" +
	"listen = { control = [\"127.0.0.1:0\"], datagram = [], http = [], local = [] }\n"

// patientBox is for a faultWorld where nobody is silent: what is late there, as on a busy machine, comes.
const patientBox = "limits.data_timeout = \"15s\"\n"

func newFaultWorld(t *testing.T, config, user string) *faultWorld {
	t.Helper()
	faultAlone(t)
	if config == "" {
		config = "limits.data_timeout = \"1s\"\n"
	}
	w := &faultWorld{t: t, b: newFTPBox(t, config+faultListen, "sessions = 400\n"+user), dir: t.TempDir()}
	w.addr = w.b.serveReal(t)[0].String()
	waitUntil(t, "the home to be locked", w.b.holdsHome) // and that is open as long as berth runs
	noLeaks(t)
	return w
}

// faultAlone gives the client a home of its own, ann's password, and back what it
// sets for its process.
func faultAlone(t *testing.T) {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(home, "config"))
	t.Setenv("BERTH_PASSWORD", "secret")
	t.Setenv("BERTH_URL", "")
	signals := make(chan os.Signal, 1) // the goroutine that the first Notify starts is no leak
	signal.Notify(signals, syscall.SIGHUP)
	signal.Stop(signals)
	percent := debug.SetGCPercent(100)
	t.Cleanup(func() {
		debug.SetMemoryLimit(math.MaxInt64)
		debug.SetGCPercent(percent)
	})
}

// here and there are paths of files of the client and of the server.
func (w *faultWorld) here(name string) string  { return filepath.Join(w.dir, name) }
func (w *faultWorld) there(name string) string { return filepath.Join(w.b.home, name) }

// write writes a file and the directories above it.
func (w *faultWorld) write(file string, content []byte) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// store has the server store f, or remove it: behind its back its ledger would be wrong.
func (w *faultWorld) store(content []byte) {
	w.t.Helper()
	c := w.b.dialReal(w.t, w.b.srv.sockets[0].addr())
	c.want("220 *")
	f := c.frames().enter()
	if content != nil {
		f.put("f", string(content), "")
	} else {
		f.frame(frameRequest, `{"do":"remove","path":"f"}`)
		f.rest()
	}
	f.do(`{"do":"quit"}`, 221, "")
	f.ended()
	f.bare.Close()
}

// stored is store, if the server has not the same already.
func (w *faultWorld) stored(content []byte) {
	w.t.Helper()
	f, err := os.Open(w.there("f"))
	if err == nil {
		defer f.Close()
		var got []byte
		if got, err = io.ReadAll(f); err == nil && bytes.Equal(got, content) && !markedPartial(f) {
			return
		}
	}
	w.store(content)
}

// A faultRun is how a verb ended.
type faultRun struct {
	code      int
	out, errs string
	took      time.Duration
}

func (r faultRun) String() string {
	return fmt.Sprintf("exit code %d after %v, %q, %q", r.code, r.took.Round(time.Millisecond), r.out, r.errs)
}

// faultVerb is run() for a verb of the client, with a pause before each try to
// connect again that tests can afford. {PORT} in words is the port.
func faultVerb(stdin io.Reader, port string, words ...string) faultRun {
	var out, errs syncBuffer
	if stdin == nil {
		stdin = strings.NewReader("")
	}
	inv := &invocation{verb: findVerb(words[0]), stdin: stdin, stdout: &out, stderr: &errs, ctx: context.Background(), pause: time.Millisecond}
	began := time.Now()
	err := inv.read(append(words[1:], "-p", port))
	if err == nil {
		err = runClient(inv)
	}
	if err != nil && err.Error() != "" {
		fmt.Fprintf(&errs, "berth %s: %v\n", words[0], err)
	}
	return faultRun{exitCode(err), out.String(), errs.String(), time.Since(began)}
}

// settled waits until the server has ended all sessions, and compares the ledger with
// the disk.
func (w *faultWorld) settled() {
	w.t.Helper()
	w.ended()
	nothingStaged(w.t, w.b.home)
	var bytes, files int64
	filepath.WalkDir(w.b.home, func(p string, d os.DirEntry, err error) error {
		if info, ierr := os.Lstat(p); err == nil && ierr == nil && p != w.b.home {
			files++
			if info.Mode().IsRegular() {
				bytes += info.Size()
			}
		}
		return nil
	})
	c := w.b.dialReal(w.t, w.b.srv.sockets[0].addr())
	c.want("220 *")
	f := c.frames().enter()
	o := f.do(`{"do":"usage"}`, 213, "")
	if want := strconv.FormatInt(bytes, 10); o.field("bytes") != want || o.field("files") != strconv.FormatInt(files, 10) {
		w.t.Errorf("the ledger has %s; the disk has %d bytes in %d files", o.raw, bytes, files)
	}
	f.do(`{"do":"quit"}`, 221, "")
	f.bare.Close()
	w.ended()
}

// ended waits until the server has no session any more.
func (w *faultWorld) ended() {
	w.until("the sessions' end", func() bool {
		w.b.srv.mu.Lock()
		defer w.b.srv.mu.Unlock()
		return len(w.b.srv.sessions) == 0
	})
}

// until is waitUntil for any goroutine, while processes and servers need the processor.
func (w *faultWorld) until(what string, ok func() bool) {
	for end := time.Now().Add(replyTime); !ok(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			w.t.Errorf("waited in vain for %s", what)
			return
		}
	}
}

// nothingStaged fails if a directory has files that nobody goes on with.
func nothingStaged(t testing.TB, dir string) {
	t.Helper()
	filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && (strings.HasPrefix(d.Name(), stagePrefix) || strings.HasPrefix(d.Name(), getPrefix)) {
			t.Errorf("%s is left behind", p)
		}
		return nil
	})
}

// A nameWatch looks at a name that has to have the old file or the new one at every
// moment.
type nameWatch struct {
	file     string
	old, new []byte // nil: there is none
	partial  bool   // the name may have a beginning of new, if it is marked as one
	mu       sync.Mutex
	last     os.FileInfo
	wrong    string
}

// look is called at any moment.
func (n *nameWatch) look() {
	n.mu.Lock()
	defer n.mu.Unlock()
	f, err := os.Open(n.file)
	if err != nil {
		if n.old != nil {
			n.wrong = "the old file is gone"
		}
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || n.last != nil && os.SameFile(info, n.last) && info.Size() == n.last.Size() && info.ModTime().Equal(n.last.ModTime()) {
		return
	}
	data, err := io.ReadAll(f)
	n.last = info
	switch {
	case err != nil || bytes.Equal(data, n.new) || n.old != nil && bytes.Equal(data, n.old):
	case n.partial && bytes.HasPrefix(n.new, data) && markedPartial(f):
	default:
		n.wrong = fmt.Sprintf("%d bytes that are neither the old file nor the new one have its name", len(data))
	}
}

// --- one small file, cut behind every byte ---

// A faultCase is one way of moving a file.
type faultCase struct {
	name  string
	put   bool
	old   bool // the target is there already
	words []string
	pipe  bool // standard input or output
}

// prepare puts the files where the case wants them.
func (w *faultWorld) prepare(fc faultCase, content []byte) *nameWatch {
	w.t.Helper()
	from, to := w.here("f"), w.there("f")
	watch := &nameWatch{new: content, partial: fc.put}
	if fc.old {
		watch.old = []byte("what was there before")
	}
	if fc.put {
		watch.file = to
		w.write(from, content)
		w.store(watch.old)
	} else {
		watch.file = from
		w.stored(content)
		os.Remove(from)
		if fc.old {
			w.write(from, watch.old)
		}
	}
	return watch
}

// run moves content with a fault and checks all that must hold. What it returns is how
// the verb ended, and the proxy, closed.
func (w *faultWorld) run(fc faultCase, content []byte, plan func(int) fault, more ...string) (faultRun, *faultProxy, *nameWatch) {
	w.t.Helper()
	watch := w.prepare(fc, content)
	p := newFaultProxy(w.t, w.addr, plan, func(p *faultProxy) {
		p.look, p.note = watch.look, w.note
		if w.wait {
			p.wait = w.ended
		}
	})
	var stdin io.Reader
	words := append([]string{"get", "127.0.0.1:f", w.here("f")}, fc.words...)
	if fc.put {
		words = append([]string{"put", w.here("f"), "ann@127.0.0.1:f"}, fc.words...)
		if fc.pipe {
			words[1], stdin = "-", bytes.NewReader(content)
		}
	} else {
		words[1] = "ann@127.0.0.1:f"
		if fc.pipe {
			words[2] = "-"
		}
	}
	r := faultVerb(stdin, p.port(), append(words, more...)...)
	watch.look()
	p.close()
	return r, p, watch
}

// complete checks what must hold if the verb has ended well.
func (w *faultWorld) complete(fc faultCase, content []byte, r faultRun, watch *nameWatch) error {
	var got []byte
	var err error
	switch {
	case watch.wrong != "":
		return errors.New(watch.wrong)
	case r.code != exitOK:
		return errors.New("not done")
	case fc.pipe && !fc.put:
		got = []byte(r.out)
	default:
		got, err = os.ReadFile(watch.file)
	}
	if err != nil || !bytes.Equal(got, content) {
		return fmt.Errorf("%d bytes arrived that are not the %d that were sent (%v)", len(got), len(content), err)
	}
	return nil
}

var faultCases = []faultCase{
	{name: "put", put: true, words: []string{"--plain"}},
	{name: "put over an old one", put: true, old: true, words: []string{"--plain"}},
	{name: "put TLS", put: true, old: true, words: []string{"--tls"}},
	{name: "put stdin", put: true, pipe: true, words: []string{"--plain"}},
	{name: "get", words: []string{"--plain"}},
	{name: "get over an old one", old: true, words: []string{"--plain"}},
	{name: "get TLS", old: true, words: []string{"--tls"}},
	{name: "get stdout", pipe: true, words: []string{"--plain"}},
}

// TestFaultsCutSmall: one small file, the connection cut behind every byte of either
// direction. With --retry it arrives; if the very first connection has not come as far
// as the file, exit code 3 is an answer, too.
func TestFaultsCutSmall(t *testing.T) {
	w := newFaultWorld(t, patientBox, "")
	content := testBytes(300)
	for _, fc := range faultCases {
		t.Run(fc.name, func(t *testing.T) {
			w.t = t
			if fc.words[0] == "--tls" {
				fc.words = []string{"--tls", "--fingerprint", faultFingerprint(t)}
			}
			r, p, watch := w.run(fc, content, always(fault{}))
			if err := w.complete(fc, content, r, watch); err != nil {
				t.Fatalf("%v: %v", r, err)
			}
			up, down := p.passed()
			failed := 0
			for _, direction := range []bool{true, false} {
				total := down
				if direction {
					total = up
				}
				kind := faultReset
				for at := int64(0); at < total; at += faultStride(total) {
					f := fault{kind: kind, up: direction, at: at}
					r, p, watch := w.run(fc, content, onFirst(f))
					err := w.complete(fc, content, r, watch)
					if r.code == exitNoConn && watch.wrong == "" && p.count() == 1 {
						err = nil
					}
					if err != nil {
						t.Errorf("%v: %v: %v", f, err, r)
						if failed++; failed > 5 {
							t.Fatal("and so on")
						}
					}
					kind = faultReset + faultEnd - kind
				}
			}
			w.settled()
			nothingStaged(t, w.dir)
		})
	}
}

// --- a file of some megabytes ---

// frameBorders is where the frames in a stream begin and end, behind the lines before
// them.
func frameBorders(t testing.TB, stream []byte, lines int) (borders []int64) {
	t.Helper()
	at := 0
	for range lines {
		at += bytes.IndexByte(stream[at:], '\n') + 1
	}
	for at < len(stream) {
		borders = append(borders, int64(at))
		_, n, err := parseHeader(stream[at:])
		if err != nil {
			t.Fatal(err)
		}
		at += frameHeader + n
	}
	return append(borders, int64(at))
}

// faultOffsets is a spread of offsets in a stream, and those around a sample of its
// frames' borders.
func faultOffsets(t testing.TB, stream []byte, lines int) (offsets []int64) {
	t.Helper()
	total := int64(len(stream))
	for i := range int64(3) {
		offsets = append(offsets, total*(2*i+1)/6)
	}
	borders := frameBorders(t, stream, lines)
	for i, b := range borders {
		if everyFault() || i%3 == 2 || i > len(borders)-2 {
			offsets = append(offsets, b-1, b, b+1, b+frameHeader, b+frameHeader+1)
		}
	}
	return slices.DeleteFunc(offsets, func(at int64) bool { return at >= total })
}

// TestFaultsCutLarge: a file of some megabytes, cut at a spread of bytes. With --retry it
// arrives, and little of it goes over the line twice; without, the exit code is 3, the
// old file stays, and -c does the rest.
func TestFaultsCutLarge(t *testing.T) {
	w := newFaultWorld(t, patientBox, "")
	content := testBytes(700<<10 + 17)
	// What the last run had to do besides: login, stat and digests.
	const overhead = 4 << 10
	for _, fc := range faultCases {
		if fc.words[0] == "--tls" {
			continue // the same with other bytes
		}
		t.Run(fc.name, func(t *testing.T) {
			w.t, w.wait, w.note = t, true, true
			r, p, watch := w.run(fc, content, always(fault{}))
			if err := w.complete(fc, content, r, watch); err != nil {
				t.Fatalf("%v: %v", r, err)
			}
			w.note = false
			way, lines, stream := 0, 2, p.conns[0].sent[0]
			if fc.put {
				way, lines, stream = 1, 1, p.conns[0].sent[1]
			}
			for i, at := range faultOffsets(t, stream, lines) {
				f := fault{kind: faultReset, up: way == 1, at: at}
				if i%2 == 0 {
					f.kind = faultEnd
				}
				r, p, watch := w.run(fc, content, onFirst(f))
				err := w.complete(fc, content, r, watch)
				if r.code == exitNoConn && watch.wrong == "" && p.count() == 1 && at < 1000 {
					continue
				}
				up, down := p.passed(1)
				again := []int64{down, up}[way]
				if err == nil && f.kind == faultEnd && again > int64(len(stream))-at+overhead {
					err = fmt.Errorf("%d bytes of %d came before the cut, and %d after it", at, len(stream), again)
				}
				if err != nil {
					t.Errorf("%v: %v: %v", f, err, r)
				}
				if i%3 != 0 || fc.pipe {
					continue
				}
				r, _, watch = w.run(fc, content, onFirst(f), "--retry", "0")
				if watch.wrong != "" || r.code != exitNoConn && w.complete(fc, content, r, watch) != nil {
					t.Errorf("%v: without --retry: %v %s", f, r, watch.wrong)
				}
				w.ended()
				p = newFaultProxy(t, w.addr, always(fault{}))
				words := append([]string{"get", "ann@127.0.0.1:f", w.here("f"), "-c"}, fc.words...)
				if fc.put {
					words[0], words[1], words[2] = "put", w.here("f"), "ann@127.0.0.1:f"
				}
				r = faultVerb(nil, p.port(), words...)
				p.close()
				up, down = p.passed()
				again = []int64{down, up}[way]
				err = w.complete(fc, content, r, watch)
				if err == nil && f.kind == faultEnd && again > int64(len(stream))-at+overhead {
					err = fmt.Errorf("%d bytes of %d came before the cut, and %d with -c", at, len(stream), again)
				}
				if err != nil {
					t.Errorf("%v: -c: %v: %v", f, err, r)
				}
			}
			w.settled()
			nothingStaged(t, w.dir)
		})
	}
}

// TestFaultsKilled: the client's process is killed in the middle; the old file stays, and
// -c in another process does the rest.
func TestFaultsKilled(t *testing.T) {
	w := newFaultWorld(t, "", "")
	content := testBytes(2<<20 + 3)
	for _, fc := range []faultCase{{name: "put", put: true, old: true}, {name: "put to a new name", put: true}, {name: "get", old: true}, {name: "get to a new name"}} {
		t.Run(fc.name, func(t *testing.T) {
			w.t = t
			watch := w.prepare(fc, content)
			// The process is killed once half of it has passed; no more of it arrives.
			started, killed := make(chan *exec.Cmd, 1), make(chan error, 1)
			p := newFaultProxy(t, w.addr, onFirst(fault{kind: faultEnd, up: fc.put, at: 1 << 20}), func(p *faultProxy) {
				p.look = func() {
					watch.look()
					if up, down := p.passed(); up+down <= 1<<20 {
						return
					}
					select {
					case k := <-started:
						if !fc.put { // what it has not read yet is lost with it
							w.until("the first bytes", func() bool {
								info, err := os.Stat(partName(w.here("f")))
								return err == nil && info.Size() >= 512<<10
							})
						}
						k.Process.Kill()
						killed <- k.Wait()
					default:
					}
				}
			})
			words := []string{"get", "ann@127.0.0.1:f", w.here("f"), "--plain", "-p", p.port()}
			if fc.put {
				words[0], words[1], words[2] = "put", w.here("f"), "ann@127.0.0.1:f"
			}
			k := exec.Command(os.Args[0], words...)
			k.Env = append(os.Environ(), asBerth+"=1")
			if err := k.Start(); err != nil {
				t.Fatal(err)
			}
			started <- k
			select {
			case <-killed:
			case <-time.After(replyTime):
				t.Fatal("it was not killed")
			}
			p.close()
			w.ended()
			watch.look()
			if watch.wrong != "" {
				t.Fatal(watch.wrong)
			}
			p = newFaultProxy(t, w.addr, always(fault{}))
			r := faultVerb(nil, p.port(), append(words[:4:4], "-c")...)
			p.close()
			up, down := p.passed()
			if err := w.complete(fc, content, r, watch); err != nil || up+down > 7<<18 || !strings.Contains(r.out, "resumed at") {
				t.Errorf("%v: %d bytes with -c: %v", err, up+down, r)
			}
			w.settled()
			nothingStaged(t, w.dir)
		})
	}
}

// --- many files on one connection ---

// TestFaultsMany: small files that are on their way together, cut at a spread of bytes, on
// one connection and on three, of which each is cut.
func TestFaultsMany(t *testing.T) {
	w := newFaultWorld(t, "", "")
	const files = 40
	want := map[string]string{}
	var names []string
	for i := range files {
		name := fmt.Sprintf("%02d", i)
		names = append(names, w.here("from/"+name))
		want[name] = string(testBytes(50 + i*37))
		w.write(w.here("from/"+name), []byte(want[name]))
	}
	look := func(t *testing.T, dir string, r faultRun, f fault) {
		t.Helper()
		w.ended() // or there are files still that a lost connection has begun
		entries, err := os.ReadDir(dir)
		entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), partialPrefix) })
		if err != nil || len(entries) != files || r.code != exitOK {
			t.Errorf("%v: %d files, %v, %v", f, len(entries), err, r)
		}
		for _, e := range entries {
			if data, _ := os.ReadFile(filepath.Join(dir, e.Name())); string(data) != want[e.Name()] {
				t.Errorf("%v: %s differs; %v", f, e.Name(), r)
			}
		}
	}
	for _, jobs := range []string{"1", "3"} {
		for _, direction := range []bool{true, false} {
			for _, verb := range []string{"put", "get"} {
				t.Run(fmt.Sprintf("%s -j %s up %v", verb, jobs, direction), func(t *testing.T) {
					w.t = t
					total := int64(36 << 10) // and less on each of three
					if direction == (verb == "get") {
						total = 4 << 10
					}
					if jobs == "3" {
						total /= 3
					}
					runs := 0
					for at := int64(600); at < total; at += max(faultStride(4*total), 37) {
						runs++
						f := fault{kind: faultReset, up: direction, at: at}
						plan := func(n int) fault {
							if n < 3 {
								return f
							}
							return fault{}
						}
						p := newFaultProxy(t, w.addr, plan)
						to := fmt.Sprintf("to-%s-%d-%v", jobs, at, direction)
						var r faultRun
						if verb == "put" {
							r = faultVerb(nil, p.port(), append(append([]string{"put", "-j", jobs, "--plain"}, names...), "ann@127.0.0.1:"+to+"/")...)
							look(t, w.there(to), r, f)
						} else {
							os.Mkdir(w.here(to), 0o755)
							words := []string{"get", "-j", jobs, "--plain"}
							for i := range files {
								words = append(words, fmt.Sprintf("ann@127.0.0.1:all/%02d", i))
							}
							r = faultVerb(nil, p.port(), append(words, w.here(to))...)
							look(t, w.here(to), r, f)
						}
						p.close()
					}
					if verb == "put" && direction {
						p := newFaultProxy(t, w.addr, always(fault{}))
						if r := faultVerb(nil, p.port(), append(append([]string{"put", "--plain"}, names...), "ann@127.0.0.1:all/")...); r.code != exitOK {
							t.Fatal(r)
						}
						p.close()
					}
					w.settled()
					nothingStaged(t, w.dir)
				})
			}
		}
	}
}

// --- bytes that change on the way, and lines that fall silent ---

// TestFaultsDamage: one byte is another. Without TLS it is the digest that finds out;
// whatever was hit, no file has its name that is not the old or the new one.
func TestFaultsDamage(t *testing.T) {
	w := newFaultWorld(t, "", "")
	content := testBytes(700)
	for _, fc := range faultCases {
		if fc.words[0] == "--tls" {
			continue
		}
		t.Run(fc.name, func(t *testing.T) {
			w.t = t
			fc.words = append(slices.Clone(fc.words), "--timeout", "1s")
			w.note = true
			_, p, _ := w.run(fc, content, always(fault{}))
			w.note = false
			stream := p.conns[0].sent[0]
			if fc.put {
				stream = p.conns[0].sent[1]
			}
			data := int64(bytes.Index(stream, content))
			if data < 0 {
				t.Fatal("the content is not in the stream")
			}
			// Its data: sent again, that is good, and if it is damaged each time, that is said.
			for at := int64(0); at < int64(len(content)); at += faultStride(int64(len(content))) {
				f := fault{kind: faultDamage, up: fc.put, at: data + at}
				r, _, watch := w.run(fc, content, onFirst(f))
				err := w.complete(fc, content, r, watch)
				written := fc.pipe && !fc.put // nothing takes that back
				if written && r.code == exitMismatch {
					err = nil
				}
				if err != nil {
					t.Errorf("%v: %v: %v", f, err, r)
				}
				f = fault{kind: faultSpoil, up: fc.put, at: at, find: content}
				r, _, watch = w.run(fc, content, always(f))
				if r.code != exitMismatch || watch.wrong != "" || !written && w.complete(fc, content, r, watch) == nil || strings.Count(r.errs, "\n") != 1 {
					t.Errorf("%v: %v %s", f, r, watch.wrong)
				}
			}
			// Anywhere: no wrong file, and an end.
			for at := int64(0); at < int64(len(stream)); at += faultStride(int64(len(stream))) {
				r, _, watch := w.run(fc, content, onFirst(fault{kind: faultDamage, up: fc.put, at: at}))
				if watch.wrong != "" {
					t.Errorf("%d: %v %s", at, r, watch.wrong)
				}
			}
			nothingStaged(t, w.dir)
			w.ended()
		})
	}
}

// TestFaultsStall: a line that falls silent is given up after --timeout and made again. All
// stall at the same time, so that the test takes no longer than one.
func TestFaultsStall(t *testing.T) {
	w := newFaultWorld(t, "", "")
	content := testBytes(600 << 10)
	var all sync.WaitGroup
	n := 0
	for _, kind := range []faultKind{faultStall, faultHang} {
		for _, put := range []bool{true, false} {
			for _, up := range []bool{true, false} {
				ats := []int64{450}
				switch {
				case put == up:
					ats = []int64{1000, 200 << 10, 560 << 10}
				case up:
					ats = []int64{90}
				}
				for _, at := range ats {
					n++
					name := fmt.Sprint("f", n)
					f := fault{kind: kind, up: up, at: at}
					from, to := w.here(name), w.there(name)
					words := []string{"put", from, "ann@127.0.0.1:" + name, "--plain", "--timeout", "2s"}
					if !put {
						from, to = to, from
						words[0], words[1], words[2] = "get", words[2], words[1]
					}
					w.write(from, content)
					all.Go(func() {
						p := newFaultProxy(t, w.addr, onFirst(f))
						r := faultVerb(nil, p.port(), words...)
						struck := p.struck()
						p.close()
						got, err := os.ReadFile(to)
						if r.code == exitNoConn && p.count() == 1 && put {
							return // its first question
						}
						if err != nil || r.code != exitOK || !bytes.Equal(got, content) {
							t.Errorf("put %v: %v: %v, %d bytes, %v", put, f, err, len(got), r)
						}
						if !struck {
							t.Errorf("put %v: %v did not happen", put, f)
						}
					})
				}
			}
		}
	}
	all.Wait()
	w.ended()
	nothingStaged(t, w.dir)
}

// faultFingerprint is that of the certificate of all tests.
func faultFingerprint(t testing.TB) string {
	t.Helper()
	pair, err := testCertificate()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(pair[0])
	return fingerprintOf(block.Bytes)
}
