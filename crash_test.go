package main

// The proof from outside that nothing is lost (contract sections 5 and 6): the real
// binary, killed with SIGKILL or with its disk cut off under it at any moment of
// random traffic, again and again, against a model of what it had acknowledged.
//
// It knows the protocol, the file names of the contract and what the answers promise;
// it must not know how uploads, recovery or the ledger are made. Nothing here waits
// for a time: what ends a round is a number of answers, and what waits for the server
// asks it.

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	crashRoundsEnv = "BERTH_CRASH_ROUNDS" // how often TestKillNine kills
	crashSeedEnv   = "BERTH_CRASH_SEED"   // a run's random choices, though not its timing
	powerCutsEnv   = "BERTH_POWER_CUTS"   // how often TestPowerCut cuts, on each file system

	crashRoundsDefault = 20
	powerCutsDefault   = 3
)

// crashNumber is an environment variable's number.
func crashNumber(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func crashSeed(t *testing.T) uint64 {
	t.Helper()
	seed := crashNumber(t, crashSeedEnv, rand.Uint64())
	t.Logf("%s=%d makes the same choices again", crashSeedEnv, seed)
	return seed
}

// TestKillNine: contract section 5, "kill -9 at any moment".
func TestKillNine(t *testing.T) {
	rounds := crashNumber(t, crashRoundsEnv, crashRoundsDefault)
	w := newCrashWorld(t, crashSeed(t), t.TempDir(), false)
	defer w.summary()
	for range rounds {
		if w.play(); t.Failed() {
			break
		}
	}
}

// TestPowerCut: contract section 5, "power loss at any moment". The file system's own
// SHUTDOWN ioctl stops it dead, with nothing flushed; mounted again it is what a machine
// finds that lost its power.
func TestPowerCut(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			disk := newTestDisk(t, kind, 0)
			cuts := crashNumber(t, powerCutsEnv, powerCutsDefault)
			w := newCrashWorld(t, crashSeed(t), disk.dir, true)
			w.kill = func() { disk.cut(t) }
			w.repair = func() { disk.remount(t) }
			defer w.summary()
			disk.sync(t)
			for range cuts {
				if w.play(); t.Failed() {
					break
				}
			}
		})
	}
}

// --- contents ---

// A crashText is a file's content, told by where its bytes come from: the beginnings
// of some streams, one behind the other.
type crashText []crashPiece

// crashPiece is the first n bytes of stream number key.
type crashPiece struct {
	key uint64
	n   int64
}

func (c crashText) size() (n int64) {
	for _, p := range c {
		n += p.n
	}
	return n
}

// first is what the first n bytes come from.
func (c crashText) first(n int64) crashText {
	var cut crashText
	for _, p := range c {
		if n <= 0 {
			break
		}
		cut = append(cut, crashPiece{p.key, min(p.n, n)})
		n -= p.n
	}
	return cut
}

func (c crashText) plus(p crashPiece) crashText {
	if p.n == 0 {
		return c
	}
	return append(slices.Clone(c), p)
}

func (p crashPiece) bytes() []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], p.key)
	b := make([]byte, p.n)
	rand.NewChaCha8(seed).Read(b)
	return b
}

// begins tells whether b is at least least bytes of c from its beginning on.
func (c crashText) begins(b []byte, least int64) bool {
	if int64(len(b)) < least || int64(len(b)) > c.size() {
		return false
	}
	for _, p := range c {
		s := p.bytes()
		n := min(len(s), len(b))
		if !bytes.Equal(s[:n], b[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

// --- the model ---

// A crashFile is what is, or may be, at a name: a file or a directory, and what is kept
// aside of an upload over it. The zero value is nothing.
type crashFile struct {
	exists, dir bool
	partial     bool // marked as an interrupted upload
	text        crashText
	least       int64 // bytes of text that must be there; fewer than all only if partial

	aside      bool // an upload over this name was interrupted
	asideText  crashText
	asideLeast int64
}

func (f crashFile) String() string {
	s := "nothing"
	switch {
	case f.dir:
		s = "a directory"
	case f.partial:
		s = fmt.Sprintf("a partial of %d to %d bytes %v", f.least, f.text.size(), f.text)
	case f.exists:
		s = fmt.Sprintf("%d bytes %v", f.text.size(), f.text)
	}
	if f.aside {
		s += fmt.Sprintf(", aside %d to %d bytes %v", f.asideLeast, f.asideText.size(), f.asideText)
	}
	return s
}

func crashWhole(text crashText) crashFile {
	return crashFile{exists: true, text: text, least: text.size()}
}

func crashPartial(text crashText, least int64) crashFile {
	return crashFile{exists: true, partial: true, text: text, least: least}
}

func (f crashFile) withAside(text crashText, least int64) crashFile {
	f.aside, f.asideText, f.asideLeast = true, text, least
	return f
}

func (f crashFile) withoutAside() crashFile {
	f.aside, f.asideText, f.asideLeast = false, nil, 0
	return f
}

// cutShort is what a crash may leave of a name whose change it cut off: what is kept
// aside is out of the way before the content goes that it is a try over, as it must
// never lie beside another one. An older try is kept for a while, and not promised.
func (f crashFile) cutShort() crashFile { return f.withoutAside() }

// A crashState is a directory as one session knows it.
type crashState map[string]crashFile

func (s crashState) with(changes crashState) crashState {
	n := maps.Clone(s)
	for name, f := range changes {
		if f.exists || f.aside {
			n[name] = f
		} else {
			delete(n, name)
		}
	}
	return n
}

// crashFound is what lies on the disk at a name.
type crashFound struct {
	exists, dir, partial bool
	content              []byte
	aside                bool
	asideContent         []byte
}

func (g crashFound) String() string {
	s := "nothing"
	if g.dir {
		s = "a directory"
	} else if g.exists {
		s = fmt.Sprintf("%d bytes", len(g.content))
	}
	if g.partial {
		s += ", marked as a partial"
	}
	if g.aside {
		s += fmt.Sprintf(", aside %d bytes", len(g.asideContent))
	}
	return s
}

// is tells whether what was found may be f, and makes it definite. loose is what a power
// loss may do to partials, which nobody was told are on the disk: any beginning of them.
func (g crashFound) is(f crashFile, loose bool) (crashFile, bool) {
	if g.exists != f.exists || g.dir != f.dir || g.partial != f.partial || g.aside != f.aside {
		return f, false
	}
	if f.exists && !f.dir {
		if loose && f.partial {
			f.least = 0
		}
		if !f.text.begins(g.content, f.least) {
			return f, false
		}
		f.text = f.text.first(int64(len(g.content)))
		f.least = f.text.size()
	}
	if f.aside {
		if loose {
			f.asideLeast = 0
		}
		if !f.asideText.begins(g.asideContent, f.asideLeast) {
			return f, false
		}
		f.asideText = f.asideText.first(int64(len(g.asideContent)))
		f.asideLeast = f.asideText.size()
	}
	return f, true
}

// crashLook reads a name and what is kept aside of it.
func crashLook(dir, name string) (g crashFound, err error) {
	p := filepath.Join(dir, name)
	fi, err := os.Lstat(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return g, err
	default:
		g.exists, g.dir = true, fi.IsDir()
		if !g.dir {
			if g.content, err = os.ReadFile(p); err != nil {
				return g, err
			}
			var b [8]byte
			_, err := unix.Lgetxattr(p, "user.berth.partial", b[:])
			g.partial = err == nil
		}
	}
	g.asideContent, err = os.ReadFile(filepath.Join(dir, partialName(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return g, nil
	}
	g.aside = err == nil
	return g, err
}

// A crashOp is a command that is not answered yet.
type crashOp struct {
	what  string
	alts  []crashState // what it may have changed, once recovery is through
	done  []crashState // and if all of it had been sent
	lost  []crashState // what a power loss alone may do
	cut   []crashState // what only a crash may do: see cutShort
	whole bool         // all of it was sent
	stou  crashText    // for a STOU that has not told its name yet
}

// --- the client ---

// crashClient is a control connection of few round trips. It returns errors and fails no
// test: its server is about to be killed.
type crashClient struct {
	conn net.Conn
	r    *bufio.Reader
	host string
}

func dialCrash(addr, user string) (*crashClient, error) {
	conn, err := net.DialTimeout("tcp", addr, replyTime)
	if err != nil {
		return nil, err
	}
	host, _, _ := net.SplitHostPort(addr)
	c := &crashClient{conn: conn, r: bufio.NewReader(conn), host: host}
	if _, err = fmt.Fprintf(conn, "USER %s\r\nPASS secret\r\n", user); err == nil {
		for _, want := range []int{220, 331, 230} {
			var code int
			var text string
			if code, text, err = c.reply(); err == nil && code != want {
				err = fmt.Errorf("login: %s", text)
			}
			if err != nil {
				break
			}
		}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

func (c *crashClient) reply() (code int, text string, err error) {
	c.conn.SetReadDeadline(time.Now().Add(replyTime))
	var all strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return 0, all.String(), err
		}
		all.WriteString(line)
		first := all.String()
		if len(first) < 4 {
			return 0, first, fmt.Errorf("reply %q has no code", first)
		}
		if first[3] == ' ' || len(line) > 3 && line[:3] == first[:3] && line[3] == ' ' {
			code, err := strconv.Atoi(first[:3])
			return code, strings.TrimRight(first, "\r\n"), err
		}
	}
}

func (c *crashClient) cmd(format string, args ...any) (int, string, error) {
	if _, err := fmt.Fprintf(c.conn, format+"\r\n", args...); err != nil {
		return 0, "", err
	}
	return c.reply()
}

// data opens a data connection.
func (c *crashClient) data() (*net.TCPConn, error) {
	code, text, err := c.cmd("EPSV")
	if err != nil {
		return nil, err
	}
	m := passiveReply.FindStringSubmatch(text)
	if code != 229 || m == nil {
		return nil, fmt.Errorf("EPSV: %s", text)
	}
	d, err := net.DialTimeout("tcp", net.JoinHostPort(c.host, m[3]), replyTime)
	if err != nil {
		return nil, err
	}
	d.SetDeadline(time.Now().Add(replyTime))
	return d.(*net.TCPConn), nil
}

var (
	quotaBytesLine = regexp.MustCompile(`(?m)^ bytes: (\d+) used, (?:(\d+) allowed, (\d+) left|no limit)\r?$`)
	quotaFilesLine = regexp.MustCompile(`(?m)^ files: (\d+) used, (?:(\d+) allowed, (\d+) left|no limit)\r?$`)
	quotaCounting  = regexp.MustCompile(`(?m)^ bytes: being counted\r?$`)
	quotaFreeLine  = regexp.MustCompile(`(?m)^ free on the disk: (\d+) bytes\r?$`)
)

// quotaAnswer is what SITE QUOTA says.
type quotaAnswer struct {
	used, allowed, left            int64 // bytes; allowed is 0 for no limit
	files, filesAllowed, filesLeft int64
	free                           int64
	counting                       bool
	text                           string
}

func (c *crashClient) quota() (a quotaAnswer, err error) {
	code, text, err := c.cmd("SITE QUOTA")
	if err != nil {
		return a, err
	}
	a.text = text
	if code != 211 {
		return a, fmt.Errorf("SITE QUOTA: %q", text)
	}
	if quotaCounting.MatchString(text) {
		a.counting = true
		return a, nil
	}
	b, f := quotaBytesLine.FindStringSubmatch(text), quotaFilesLine.FindStringSubmatch(text)
	if b == nil || f == nil {
		return a, fmt.Errorf("SITE QUOTA: %q", text)
	}
	num := func(s string) int64 { n, _ := strconv.ParseInt(s, 10, 64); return n }
	a.used, a.allowed, a.left = num(b[1]), num(b[2]), num(b[3])
	a.files, a.filesAllowed, a.filesLeft = num(f[1]), num(f[2]), num(f[3])
	if m := quotaFreeLine.FindStringSubmatch(text); m != nil {
		a.free = num(m[1])
	}
	return a, nil
}

// crashUsage is a walk of a home, as the ledger counts: bytes of regular files and all
// names. staging is what has the name of an upload that is running.
type crashUsage struct {
	bytes, files int64
	staging      []string
	odd          []string // what no client and no rule put there
}

// walkHome walks one. excess is what uploads over existing files hold beyond their growth,
// which alone is charged while they run.
func walkHome(home string) (u crashUsage, excess, excessFiles int64, err error) {
	err = filepath.WalkDir(home, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == home {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		u.files++
		size := int64(0)
		if fi.Mode().IsRegular() {
			size = fi.Size()
			u.bytes += size
		}
		name := d.Name()
		if strings.HasPrefix(name, ".berth-up-") {
			u.staging = append(u.staging, p)
			_, target, _ := strings.Cut(name[len(".berth-up-"):], ".")
			if target == "" { // one of a name too long to be told
				excess, excessFiles = excess+size, excessFiles+1
			} else if fi, err := os.Lstat(filepath.Join(filepath.Dir(p), target)); err == nil {
				excess, excessFiles = excess+min(size, fi.Size()), excessFiles+1
			}
		} else if strings.HasPrefix(name, ".berth-") && !strings.HasPrefix(name, ".berth-part-") {
			u.odd = append(u.odd, p)
		}
		return nil
	})
	return u, excess, excessFiles, err
}

// --- the world ---

// crashUser is a home, its quota, and the sessions that work in it.
type crashUser struct {
	name, home   string
	bytes, files int64 // quota; 0: none
	sessions     []*crashSession
	both         crashRegister
}

// crashWorld is a server, what it may have on its disk, and who talks to it.
type crashWorld struct {
	t      *testing.T
	seed   uint64
	rnd    *rand.Rand
	box    *ftpBox
	file   string // its configuration
	users  []*crashUser
	power  bool   // cut the power and not only kill the process
	kill   func() // what comes before SIGKILL
	repair func() // what comes after it

	orphans map[string][]int64 // sizes of what recovery has to keep, by the target's path
	round   uint64
	keys    atomic.Uint64
	acks    atomic.Int64
	cuts    map[string]int // what was in flight, by verb, for the summary
	log     []string       // of the server

	mu     sync.Mutex
	faults []string
}

// newCrashWorld makes homes and state below dir. The configuration is elsewhere: no
// power loss of berth's is to lose it.
func newCrashWorld(t *testing.T, seed uint64, dir string, power bool) *crashWorld {
	t.Helper()
	w := &crashWorld{t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 0)), power: power, kill: func() {}, repair: func() {}, cuts: map[string]int{}}
	conf := t.TempDir()
	w.box = &ftpBox{dir: conf}
	w.file = filepath.Join(conf, "berth.toml")
	state := filepath.Join(dir, "state")
	w.box.writeTLS(t, state)
	text := daemonListen + fmt.Sprintf("server.state_dir = %q\nserver.users_dir = %q\ntransfer.durable = %t\n", state, filepath.Join(conf, "users.d"), power)
	if err := os.WriteFile(w.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, u := range []*crashUser{
		{name: "ann", bytes: 640 << 10, files: 60},
		{name: "bob", bytes: 256 << 10, files: 26},
		{name: "cyd"},
	} {
		u.home = filepath.Join(dir, "homes", u.name)
		more := fmt.Sprintf("home = %q\n", u.home)
		if u.bytes > 0 {
			more += fmt.Sprintf("quota_bytes = \"%dKiB\"\nquota_files = %d\n", u.bytes>>10, u.files)
		}
		w.box.user(t, u.name, more)
		for i := range 2 {
			s := &crashSession{w: w, user: u, name: fmt.Sprintf("s%d", i), history: []crashState{{}}}
			s.dir = filepath.Join(u.home, s.name)
			if err := os.MkdirAll(s.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			u.sessions = append(u.sessions, s)
		}
		w.users = append(w.users, u)
	}
	return w
}

func (w *crashWorld) summary() {
	var what []string
	for _, k := range slices.Sorted(maps.Keys(w.cuts)) {
		what = append(what, fmt.Sprintf("%s %d", k, w.cuts[k]))
	}
	w.t.Logf("%d rounds, %d answers; cut off in: %s", w.round, w.acks.Load(), strings.Join(what, ", "))
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, text := range w.faults { // once more, behind the server's log: the end is what a report shows that was cut
		w.t.Log("failed: " + text)
	}
}

// fault reports what must not be.
func (w *crashWorld) fault(format string, args ...any) {
	w.t.Helper()
	text := fmt.Sprintf("round %d of %s=%d: %s", w.round, crashSeedEnv, w.seed, fmt.Sprintf(format, args...))
	w.t.Error(text)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, text)
}

// crashRound is one life of the server.
type crashRound struct {
	addr  string
	left  atomic.Int64 // answers until it dies
	busy  atomic.Int32 // sessions that still do something
	fire  chan struct{}
	once  sync.Once
	dying atomic.Bool
	over  chan struct{} // it is dead
}

func (r *crashRound) end() { r.once.Do(func() { close(r.fire) }) }

// idle says that a session waits for the end.
func (r *crashRound) idle() {
	if r.busy.Add(-1) == 0 {
		r.end()
	}
}

// play is one round: start, check what the last one left, traffic, death.
func (w *crashWorld) play() {
	t := w.t
	w.round++
	env := []string{}
	if w.power {
		env = append(env, fmt.Sprintf("%s=%08x-0000-4000-8000-%012x", testBootID, w.round, w.seed&(1<<48-1)))
	}
	p := serveBerth(t, w.file, env)
	logged := make(chan []string)
	go func() { // a log that nobody reads would stop it
		var lines []string
		for line := range p.lines {
			if level := line["level"]; level == "WARN" || level == "ERROR" {
				lines = append(lines, fmt.Sprint(line))
			}
		}
		logged <- lines
	}()
	r := &crashRound{addr: p.addrs["control"], fire: make(chan struct{}), over: make(chan struct{})}
	// Some rounds end while the recovery of the last one is still at work.
	hasty := w.round > 1 && w.rnd.IntN(8) == 0
	var wg sync.WaitGroup
	if !hasty {
		if w.settle(r.addr); !t.Failed() {
			r.left.Store(w.rnd.Int64N(200))
			var all []*crashSession
			for _, u := range w.users {
				all = append(all, u.sessions...)
			}
			w.rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			all = all[:4+w.rnd.IntN(3)]
			r.busy.Store(int32(len(all)))
			for i, s := range all {
				s.rnd = rand.New(rand.NewPCG(w.seed, w.round<<8|uint64(i)))
				wg.Go(func() { s.work(r) })
			}
			select {
			case <-r.fire:
			case <-time.After(4 * replyTime):
				w.fault("the sessions hang")
			}
		}
	}
	for n := w.rnd.IntN(300); n > 0; n-- {
		runtime.Gosched() // and now it may be anywhere
	}
	r.dying.Store(true)
	w.kill()
	if err := p.cmd.Process.Kill(); err != nil {
		w.fault("kill: %v", err)
	}
	w.log = <-logged
	p.cmd.Wait()
	close(r.over)
	wg.Wait()
	if state := p.cmd.ProcessState; state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		w.fault("it ended by itself: %v: %s", state, p.rest.String())
	}
	if rest := p.rest.String(); rest != "" { // a panic, or what the race detector says
		w.fault("it wrote: %s", rest)
	}
	if !w.power {
		w.withinQuota("at the kill", true)
		w.noteOrphans()
	}
	w.repair()
	if t.Failed() {
		for _, line := range w.log {
			t.Log(line)
		}
	}
}

// noteOrphans takes down which uploads the kill left in homes without a quota, whose
// recovery has to keep all of them but those that began as a copy of a complete file
// (APPE, or STOR with REST) and those whose name did not fit into the staging file's.
func (w *crashWorld) noteOrphans() {
	w.orphans = map[string][]int64{}
	for _, u := range w.users {
		if u.bytes > 0 {
			continue
		}
		got, _, _, err := walkHome(u.home)
		if err != nil {
			w.fault("%v", err)
		}
		for _, p := range got.staging {
			fi, err := os.Stat(p)
			if err != nil {
				w.fault("%v", err)
				continue
			}
			random, target, _ := strings.Cut(strings.TrimPrefix(filepath.Base(p), ".berth-up-"), ".")
			if fi.Size() > 0 && target != "" && !strings.ContainsAny(random[len(random)-1:], "ac") {
				path := filepath.Join(filepath.Dir(p), target)
				w.orphans[path] = append(w.orphans[path], fi.Size())
			}
		}
	}
}

// keptOrphans compares that with what the recovery made of them.
func (w *crashWorld) keptOrphans() {
	for p, sizes := range w.orphans {
		g, err := crashLook(filepath.Split(p))
		if err != nil {
			w.fault("%v", err)
		}
		if !(g.partial && slices.Contains(sizes, int64(len(g.content)))) && !(g.aside && slices.Contains(sizes, int64(len(g.asideContent)))) {
			w.fault("%s: the kill left %d bytes of an upload, and the recovery %v", p, sizes, g)
		}
	}
}

// withinQuota compares disk and quota; running is for a moment when uploads are not
// recovered yet.
func (w *crashWorld) withinQuota(when string, running bool) {
	for _, u := range w.users {
		got, excess, excessFiles, err := walkHome(u.home)
		if err != nil {
			w.fault("%v", err)
			continue
		}
		if !running {
			excess, excessFiles = 0, 0
		}
		if u.bytes > 0 && got.bytes-excess > u.bytes {
			w.fault("%s: %s has %d bytes, %d of them beside what they replace; allowed are %d", when, u.name, got.bytes, excess, u.bytes)
		}
		if u.files > 0 && got.files-excessFiles > u.files {
			w.fault("%s: %s has %d files, %d of them beside what they replace; allowed are %d", when, u.name, got.files, excessFiles, u.files)
		}
	}
}

// settle waits for the recovery, compares everything with the model, and takes what is
// found as the model's new state.
func (w *crashWorld) settle(addr string) {
	for _, u := range w.users {
		c, err := dialCrash(addr, u.name)
		if err != nil {
			w.fault("%v", err)
			return
		}
		defer c.conn.Close()
		// What a walk finds beside the ledger's account is compared only when the two
		// agree on no staging file being there: the sweep moves names while we look.
		for end := time.Now().Add(replyTime); ; {
			got, _, _, err := walkHome(u.home)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				w.fault("%v", err)
				return
			}
			a, qerr := c.quota() // also what this loop waits with
			if err == nil && qerr == nil && len(got.staging) == 0 && !a.counting && a.used == got.bytes && a.files == got.files {
				if len(got.odd) > 0 {
					w.fault("%s: %q was left", u.name, got.odd)
				}
				if a.allowed != u.bytes || a.filesAllowed != u.files || u.bytes > 0 && a.left != max(0, u.bytes-a.used) || u.files > 0 && a.filesLeft != max(0, u.files-a.files) {
					w.fault("%s: SITE QUOTA says %q; the quota is %d bytes and %d files", u.name, a.text, u.bytes, u.files)
				}
				break
			}
			if time.Now().After(end) {
				w.fault("%s: no end of the recovery: staging %q, a walk counts %d bytes in %d files (%v), SITE QUOTA says %q (%v)", u.name, got.staging, got.bytes, got.files, err, a.text, qerr)
				return
			}
			runtime.Gosched()
		}
	}
	w.withinQuota("after the recovery", false)
	w.keptOrphans()
	for _, u := range w.users {
		for _, s := range u.sessions {
			s.check()
		}
		u.checkBoth(w)
	}
}

// --- a session ---

// crashSession is one client that works in a directory of its own, and what it knows of
// it. Only its own goroutine touches it while the server runs.
type crashSession struct {
	w    *crashWorld
	user *crashUser
	name string
	dir  string
	rnd  *rand.Rand
	c    *crashClient

	// history is what the directory was after each answer, the present last. A power
	// loss may take back what was not acknowledged by a 226, but in order: what came
	// before something durable is durable.
	history []crashState
	op      *crashOp // in flight
}

func (s *crashSession) now() crashState { return s.history[len(s.history)-1] }

func (s *crashSession) fault(format string, args ...any) {
	s.w.fault("%s/%s: %s", s.user.name, s.name, fmt.Sprintf(format, args...))
}

// became notes what an answered command made of some names.
func (s *crashSession) became(changes crashState, durable bool) {
	now := s.now()
	next := now.with(changes)
	if s.w.power && !durable {
		half := crashState{}
		for name := range changes {
			if now[name].aside && !next[name].aside {
				half[name] = now[name].cutShort()
			}
		}
		if len(half) > 0 {
			s.history = append(s.history, now.with(half))
		}
		s.history = append(s.history, next)
	} else {
		s.history = []crashState{next}
	}
	s.op = nil
}

// resolve finds on the disk which of some changes a command made that has been answered.
func (s *crashSession) resolve(r *crashRound, what string, options []crashState) error {
	for _, o := range options {
		if changes, ok := s.fits(o, false, nil); ok {
			s.became(changes, false)
			return nil
		}
	}
	if s.late(r) {
		return errRoundOver // nobody can tell from a disk that is dead
	}
	var all []string
	for _, o := range options {
		all = append(all, fmt.Sprint(o))
	}
	for name := range options[0] {
		g, err := crashLook(s.dir, name)
		all = append(all, fmt.Sprintf("found at %s: %v %v", name, g, err))
	}
	s.fault("after %s none of this is there:\n%s", what, strings.Join(all, "\n"))
	return nil
}

// fits compares some names with the disk.
func (s *crashSession) fits(state crashState, loose bool, cache map[string]crashFound) (crashState, bool) {
	definite := crashState{}
	for name, f := range state {
		g, ok := cache[name]
		if !ok {
			var err error
			if g, err = crashLook(s.dir, name); err != nil {
				return nil, false
			}
			if cache != nil {
				cache[name] = g
			}
		}
		if definite[name], ok = g.is(f, loose); !ok {
			return nil, false
		}
	}
	return definite, true
}

// check compares the directory with everything it may be after a crash.
func (s *crashSession) check() {
	op := s.op
	s.op = nil
	names, err := os.ReadDir(s.dir)
	if err != nil {
		s.fault("%v", err)
		return
	}
	found := map[string]crashFound{}
	asides := map[string]bool{}
	for _, d := range names {
		if strings.HasPrefix(d.Name(), ".berth-") {
			asides[d.Name()] = true
		} else if found[d.Name()], err = crashLook(s.dir, d.Name()); err != nil {
			s.fault("%v", err)
		}
	}
	for _, name := range crashNames { // aside with nothing at the name itself
		if _, ok := found[name]; !ok && asides[partialName(name)] {
			if found[name], err = crashLook(s.dir, name); err != nil {
				s.fault("%v", err)
			}
		}
	}
	for name, g := range found {
		if g.aside {
			delete(asides, partialName(name))
		}
	}
	if len(asides) > 0 {
		s.fault("partials of no name: %v", asides)
	}
	candidates := slices.Clone(s.history)
	if op != nil {
		now := s.now()
		options := slices.Concat(op.alts, op.cut)
		if op.whole {
			options = append(options, op.done...)
		}
		if s.w.power {
			options = append(options, op.lost...)
		}
		if op.stou != nil { // under a name that was not told yet
			for name := range found {
				if _, known := now[name]; !known && strings.HasPrefix(name, "stou.") {
					options = append(options, crashState{name: crashPartial(op.stou, 0)}, crashState{name: crashWhole(op.stou)})
				}
			}
		}
		for _, o := range options {
			candidates = append(candidates, now.with(o))
		}
		s.w.cuts[strings.Fields(op.what)[0]]++
	}
	for _, c := range slices.Backward(candidates) {
		if definite, ok := crashSame(found, c, s.w.power); ok {
			s.history = []crashState{definite}
			return
		}
	}
	var text strings.Builder
	fmt.Fprintf(&text, "the directory is none of the %d things it may be; in flight: ", len(candidates))
	if op == nil {
		text.WriteString("nothing")
	} else {
		fmt.Fprintf(&text, "%s (all sent: %t)", op.what, op.whole)
		for _, o := range slices.Concat(op.alts, op.cut, op.done, op.lost) {
			fmt.Fprintf(&text, "\n  may be %v", o)
		}
	}
	last := s.now()
	for _, name := range slices.Sorted(maps.Keys(last.with(nil))) {
		if _, ok := found[name].is(last[name], s.w.power); !ok {
			fmt.Fprintf(&text, "\n  %.40q: was %v, found is %v", name, last[name], found[name])
		}
	}
	for name, g := range found {
		if _, ok := last[name]; !ok {
			fmt.Fprintf(&text, "\n  %.40q: was nothing, found is %v", name, g)
		}
	}
	if len(s.history) > 1 {
		fmt.Fprintf(&text, "\n  (%d earlier states, not durable, are possible too)", len(s.history)-1)
	}
	s.fault("%s", text.String())
}

// crashSame compares a whole directory with a state.
func crashSame(found map[string]crashFound, state crashState, loose bool) (crashState, bool) {
	definite := crashState{}
	for name, f := range state {
		var ok bool
		if definite[name], ok = found[name].is(f, loose); !ok {
			return nil, false
		}
	}
	for name := range found {
		if _, ok := state[name]; !ok {
			return nil, false
		}
	}
	return definite, true
}

// crashNames are what sessions work on: plain, not ASCII, and too long for a name that
// holds it and more.
var crashNames = []string{"a", "b b", "ç.txt", "d.jpg", strings.Repeat("long", 62) + "."}

var crashDirs = []string{"x", "y"}

func crashLong(name string) bool { return len(name) > 200 }

var errRoundOver = errors.New("the round is over")

// work does this and that until the server is gone.
func (s *crashSession) work(r *crashRound) {
	defer r.idle()
	c, err := dialCrash(r.addr, s.user.name)
	if err != nil {
		if !r.dying.Load() {
			s.fault("%v", err)
			r.end()
		}
		return
	}
	s.c = c
	defer c.conn.Close()
	if code, text, err := c.cmd("CWD %s", s.name); err != nil || code != 250 {
		if !r.dying.Load() {
			s.fault("CWD: %s, %v", text, err)
			r.end()
		}
		return
	}
	for !r.dying.Load() && !s.w.t.Failed() {
		err := s.step(r)
		if errors.Is(err, errRoundOver) {
			return
		}
		if err != nil {
			if !r.dying.Load() {
				s.fault("%v", err)
				r.end()
			}
			return
		}
		s.w.acks.Add(1)
		if r.left.Add(-1) <= 0 {
			r.end()
		}
	}
	if s.w.t.Failed() {
		r.end()
	}
}

// late tells whether an answer that was just read may have come after the power was cut.
// Then it says nothing: a machine without power sends none, and on a file system that is
// shut down an fsync of a directory may well return 0 (xfs).
func (s *crashSession) late(r *crashRound) bool { return s.w.power && r.dying.Load() }

// pick is one of the names for which ok holds.
func (s *crashSession) pick(ok func(crashFile) bool) (string, bool) {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(s.now())) {
		if ok(s.now()[name]) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "", false
	}
	return names[s.rnd.IntN(len(names))], true
}

func (s *crashSession) step(r *crashRound) error {
	name := crashNames[s.rnd.IntN(len(crashNames))]
	cur := s.now()[name]
	n := s.rnd.IntN(100)
	if len(s.now()) > 12 && n < 50 {
		n = 75 // room for more STOU
	}
	switch {
	case n < 38:
		return s.upload(r, "STOR", name, -1)
	case n < 50: // what is there is continued, or refused
		switch {
		case cur.aside && s.rnd.IntN(4) > 0:
			return s.upload(r, "STOR", name, cur.asideText.size())
		case cur.aside:
			return s.upload(r, "STOR", name, cur.asideText.size()+1)
		case cur.partial:
			return s.upload(r, "STOR", name, cur.text.size())
		case cur.exists && s.rnd.IntN(8) > 0:
			return s.upload(r, "STOR", name, 1+s.rnd.Int64N(cur.text.size()+1))
		}
		return s.upload(r, "STOR", name, 1+s.rnd.Int64N(1000))
	case n < 60:
		return s.upload(r, "APPE", name, -1)
	case n < 66:
		return s.unique(r)
	case n < 72:
		return s.upload2(r)
	case n < 82:
		if victim, ok := s.pick(func(f crashFile) bool { return f.exists && !f.dir }); ok {
			gone := s.now()[victim]
			s.op = &crashOp{what: "DELE", alts: []crashState{{victim: crashFile{}}, {victim: onlyAside(gone)}}, cut: []crashState{{victim: gone.cutShort()}}}
			return s.simple(r, "DELE "+victim, 250, crashState{victim: {}})
		}
		return nil
	case n < 92:
		from, ok := s.pick(func(f crashFile) bool { return f.exists && !f.dir })
		if !ok || from == name {
			return nil
		}
		return s.rename(r, from, name)
	default:
		dir := crashDirs[s.rnd.IntN(len(crashDirs))]
		if s.now()[dir].exists {
			s.op = &crashOp{what: "RMD", alts: []crashState{{dir: {}}}}
			return s.simple(r, "RMD "+dir, 250, crashState{dir: {}})
		}
		made := crashState{dir: {exists: true, dir: true}}
		s.op = &crashOp{what: "MKD", alts: []crashState{made}}
		return s.simple(r, "MKD "+dir, 257, made)
	}
}

func onlyAside(f crashFile) crashFile {
	return crashFile{aside: f.aside, asideText: f.asideText, asideLeast: f.asideLeast}
}

// simple runs a command of one answer; 552 is the quota's.
func (s *crashSession) simple(r *crashRound, line string, want int, changes crashState) error {
	code, text, err := s.c.cmd("%s", line)
	switch {
	case err != nil:
		return err
	case s.late(r):
		return errRoundOver
	case code == want:
		s.became(changes, false)
	case code == 552 && want == 257:
		s.op = nil
	default:
		return fmt.Errorf("%s: %s", line, text)
	}
	return nil
}

func (s *crashSession) rename(r *crashRound, from, to string) error {
	f, g := s.now()[from], s.now()[to]
	// What is kept aside stays with its name, goes with the file or is dropped; what was
	// aside of a content that is gone must be gone too.
	var done, late []crashState
	for _, at := range []crashFile{onlyAside(f), {}} {
		done = append(done, crashState{from: at, to: f.withoutAside()})
		late = append(late, crashState{from: at, to: f.withoutAside().withAsideOf(g)})
	}
	if f.aside {
		done = append(done, crashState{from: {}, to: f})
	}
	s.op = &crashOp{what: "RNTO", alts: slices.Concat(done, late), cut: []crashState{{to: g.cutShort()}}}
	if code, text, err := s.c.cmd("RNFR %s", from); err != nil {
		return err
	} else if s.late(r) {
		return errRoundOver
	} else if code != 350 {
		return fmt.Errorf("RNFR %s: %s", from, text)
	}
	code, text, err := s.c.cmd("RNTO %s", to)
	switch {
	case err != nil:
		return err
	case s.late(r):
		return errRoundOver
	case code != 250:
		return fmt.Errorf("RNTO %s: %s", to, text)
	}
	return s.resolve(r, "RNTO "+to, done)
}

func (f crashFile) withAsideOf(g crashFile) crashFile {
	f.aside, f.asideText, f.asideLeast = g.aside, g.asideText, g.asideLeast
	return f
}

// randomSize is mostly that of a small file, and sometimes beyond every buffer.
func (s *crashSession) randomSize() int64 {
	switch n := s.rnd.IntN(100); {
	case n < 4:
		return 0
	case n < 55:
		return s.rnd.Int64N(4 << 10)
	case n < 90:
		return s.rnd.Int64N(48 << 10)
	default:
		return s.rnd.Int64N(600 << 10)
	}
}

// The ways in which an upload ends.
const (
	endWell  = iota
	endStall // not before the server does
	endAbort
	endReset
	endShort // of what ALLO announced
	endGone  // the client is
)

func (s *crashSession) randomEnd() int {
	switch n := s.rnd.IntN(100); {
	case n < 5:
		return endStall
	case n < 10:
		return endAbort
	case n < 15:
		return endReset
	case n < 19:
		return endShort
	case n < 21:
		return endGone
	}
	return endWell
}

// upload runs STOR or APPE; rest is -1 for none.
func (s *crashSession) upload(r *crashRound, verb, name string, rest int64) error {
	cur := s.now()[name]
	// What the server will continue, by the rules of contract section 5, and what is at
	// the name while it does.
	var base crashText
	var refused, resumed, kept bool
	under := cur
	kept = true
	switch {
	case verb == "APPE" && cur.partial:
		base, resumed, under = cur.text, true, onlyAside(cur)
	case verb == "APPE" && cur.exists:
		base, kept = cur.text, false
	case verb == "APPE" || rest <= 0:
	case cur.aside && rest != cur.asideText.size():
		refused = true
	case cur.aside:
		base, resumed, under = cur.asideText, true, cur.withoutAside()
	case !cur.exists || rest > cur.text.size():
		refused = true
	case cur.partial && rest == cur.text.size():
		base, resumed, under = cur.text, true, onlyAside(cur)
	default:
		base = cur.text.first(rest)
	}
	piece := crashPiece{s.w.keys.Add(1), s.randomSize()}
	full := base.plus(piece)
	least := int64(1)
	if resumed && s.user.bytes == 0 { // else it may be cut down to what the quota has room for
		least = base.size()
	}
	what := verb
	if rest > 0 {
		what = "REST+" + verb
	}
	op := &crashOp{what: what}
	switch {
	case refused:
	case kept && under.exists && !under.partial:
		op.alts = []crashState{{name: under.withAside(full, least)}}
	case kept: // of a partial that was begun anew the later try is kept
		op.alts = []crashState{{name: crashPartial(full, least)}}
		if under.aside {
			op.alts = append(op.alts, crashState{name: crashPartial(full, least).withAsideOf(under)})
		}
	}
	if !refused {
		op.done = []crashState{{name: crashWhole(full)}, {name: crashWhole(full).withAsideOf(under)}}
		op.lost = []crashState{{name: under}}
		if crashLong(name) || s.user.bytes > 0 {
			// Nothing tells whose it was; or there is no room for both.
			op.alts = append(op.alts, op.lost...)
		}
		if crashLong(name) || s.user.bytes > 0 || s.w.power || !kept || full.size() == 0 {
			// What takes the place of the older try is not kept either.
			op.cut = []crashState{{name: under.cutShort()}}
		}
	}
	s.op = op
	end := s.randomEnd()
	if end == endShort {
		if code, text, err := s.c.cmd("ALLO %d", full.size()+1); err != nil || code != 200 {
			return fmt.Errorf("ALLO: %s, %w", text, err)
		}
	}
	line := verb + " " + name
	if rest > 0 {
		line = fmt.Sprintf("REST %d\r\n%s", rest, line)
	}
	code, text, err := s.send(r, line, rest > 0, piece, end, &op.whole, nil)
	switch {
	case err != nil:
		return err
	case s.late(r):
		return errRoundOver
	case refused && code == 554:
		s.op = nil
	case refused:
		return fmt.Errorf("%s with REST %d of %v: %s; want 554", line, rest, cur, text)
	case code == 226 && op.whole:
		s.became(crashState{name: crashWhole(full)}, true)
	case code == 226:
		return fmt.Errorf("%s: %s, for what was not sent whole (%d)", line, text, end)
	case code == 552: // nothing is kept of what there is no room for
		options := []crashState{{name: cur}}
		if resumed && !under.exists { // what was aside of nothing is under its own name now
			options = append(options, crashState{name: crashPartial(base, base.size())})
		}
		return s.resolve(r, fmt.Sprintf("%s (REST %d): %s", verb, rest, text), options)
	case code == 426 && end != endWell:
		options := append([]crashState{{name: cur}}, op.alts...)
		return s.resolve(r, fmt.Sprintf("%s (REST %d): %s", verb, rest, text), options)
	default:
		return fmt.Errorf("%s with REST %d: %s", line, rest, text)
	}
	return nil
}

// unique runs STOU.
func (s *crashSession) unique(r *crashRound) error {
	piece := crashPiece{s.w.keys.Add(1), s.randomSize()}
	full := crashText{}.plus(piece)
	op := &crashOp{what: "STOU", stou: crashText{piece}}
	s.op = op
	var name string
	end := s.randomEnd()
	if end == endShort {
		end = endWell
	}
	code, text, err := s.send(r, "STOU stou", false, piece, end, &op.whole, func(opening string) {
		_, name, _ = strings.Cut(opening, "FILE: ")
		op.alts = []crashState{{name: crashPartial(full, 1)}}
		op.done = []crashState{{name: crashWhole(full)}}
		op.stou = nil
	})
	switch {
	case err != nil:
		return err
	case s.late(r):
		return errRoundOver
	case code == 226 && op.whole && name != "":
		s.became(crashState{name: crashWhole(full)}, true)
	case code == 552 && name == "":
		s.op = nil
	case code == 552:
		return s.resolve(r, "STOU: "+text, []crashState{{name: {}}})
	case code == 426 && end != endWell:
		return s.resolve(r, "STOU: "+text, append([]crashState{{name: {}}}, op.alts...))
	default:
		return fmt.Errorf("STOU: %q, %s", name, text)
	}
	return nil
}

// send runs the data connection of an upload and returns the final answer. whole is set
// before the last byte and the FIN go out; opening is told what the 150 says.
func (s *crashSession) send(r *crashRound, line string, rest bool, piece crashPiece, end int, whole *bool, opening func(string)) (int, string, error) {
	d, err := s.c.data()
	if err != nil {
		return 0, "", err
	}
	defer d.Close()
	code, text, err := s.c.cmd("%s", line)
	if err == nil && rest {
		if code != 350 {
			return 0, "", fmt.Errorf("REST: %s", text)
		}
		code, text, err = s.c.reply()
	}
	if err != nil || code != 150 {
		return code, text, err
	}
	if opening != nil {
		opening(text)
	}
	content := piece.bytes()
	if end != endWell && end != endShort && len(content) > 0 {
		content = content[:s.rnd.IntN(len(content)+1)]
	}
	if end == endWell && len(content) == int(piece.n) {
		*whole = true
	}
	for len(content) > 0 {
		n := len(content)
		if s.rnd.IntN(2) == 0 {
			n = 1 + s.rnd.IntN(n)
		}
		if _, err := d.Write(content[:n]); err != nil {
			break // the answer tells
		}
		content = content[n:]
		runtime.Gosched()
	}
	switch end {
	case endStall:
		r.idle()
		<-r.over
		r.busy.Add(1) // for work's own
		return 0, "", errRoundOver
	case endGone:
		s.c.conn.Close()
		return 0, "", errRoundOver
	case endReset:
		d.SetLinger(0)
	case endAbort:
		code, text, err := s.c.cmd("ABOR")
		if err != nil {
			return 0, "", err
		}
		if last, lastText, err := s.c.reply(); err != nil || last != 226 {
			return 0, "", fmt.Errorf("ABOR: %s, then %s, %w", text, lastText, err)
		}
		return code, text, nil
	}
	d.Close()
	return s.c.reply()
}

// --- one name, two sessions ---

// crashRegister is the history of a name that two sessions store under at once: what is
// there must be what an upload sent that may have been the last to finish.
type crashRegister struct {
	mu    sync.Mutex
	first crashFile // before this round
	tries []*crashTry
	clock int
}

type crashTry struct {
	text       crashText
	begun, end int // by the register's clock; end 0 for one that was not answered with 226
	whole      bool
}

func (s *crashSession) upload2(r *crashRound) error {
	reg := &s.user.both
	piece := crashPiece{s.w.keys.Add(1), s.randomSize()}
	try := &crashTry{text: crashText{}.plus(piece)}
	reg.mu.Lock()
	reg.clock++
	try.begun = reg.clock
	reg.tries = append(reg.tries, try)
	reg.mu.Unlock()
	end := s.randomEnd()
	if end == endShort {
		end = endWell
	}
	whole := false // read by the other session's check only after the round
	s.op = &crashOp{what: "both"}
	code, text, err := s.send(r, "STOR ../both", false, piece, end, &whole, nil)
	reg.mu.Lock()
	defer reg.mu.Unlock()
	try.whole = whole
	if err != nil {
		return err
	}
	if s.late(r) {
		return errRoundOver
	}
	switch {
	case code == 226 && whole:
		reg.clock++
		try.end = reg.clock
		s.became(nil, true)
	case code == 552 || code == 426 && end != endWell:
		try.whole = false // it was answered: it is none
		s.op = nil
	default:
		return fmt.Errorf("STOR ../both: %s", text)
	}
	return nil
}

// checkBoth is check for that name.
func (u *crashUser) checkBoth(w *crashWorld) {
	reg := &u.both
	defer func() { reg.tries, reg.clock = nil, 0 }()
	g, err := crashLook(u.home, "both")
	if err != nil {
		w.fault("%s: %v", u.name, err)
		return
	}
	acked := 0 // when the last one began that was acknowledged
	for _, try := range reg.tries {
		if try.end > 0 {
			acked = max(acked, try.begun)
		}
	}
	// What is aside is the beginning of anything that was sent.
	aside := crashFile{}
	if g.aside {
		ok := false
		for _, text := range append([]crashText{reg.first.asideText}, texts(reg.tries)...) {
			if text.begins(g.asideContent, 0) {
				aside, ok = crashFile{}.withAside(text.first(int64(len(g.asideContent))), 0), true
			}
		}
		if !ok {
			w.fault("%s: aside of both are %d bytes that nobody sent", u.name, len(g.asideContent))
		}
		g.aside, g.asideContent = false, nil
	}
	var options []crashFile
	if acked == 0 {
		options = append(options, reg.first.withoutAside())
	}
	for _, try := range reg.tries {
		if try.whole && (try.end == 0 || try.end >= acked) {
			options = append(options, crashWhole(try.text))
		}
		if acked == 0 && (!reg.first.exists || reg.first.partial) {
			options = append(options, crashPartial(try.text, 1))
		}
	}
	for _, o := range options {
		if f, ok := g.is(o, w.power); ok {
			reg.first = f.withAsideOf(aside)
			return
		}
	}
	w.fault("%s: both is %v; it may be one of %v", u.name, g, options)
}

func texts(tries []*crashTry) (all []crashText) {
	for _, try := range tries {
		all = append(all, try.text)
	}
	return all
}
