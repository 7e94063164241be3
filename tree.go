// tree.go knows which processes belong to a program, however they try to get away,
// and ends them. A process group is not enough for that: setsid(2) leaves it, and a
// process whose parent has died tells nothing about who that was.
//
// So each program is numbered, by a resource limit that has no effect on it, which
// its descendants inherit and cannot raise. This file does not start programs.

package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// The number is in the hard limit of RLIMIT_RTTIME: microseconds that a thread under
	// a real-time policy may go on without ever waiting (getrlimit(2)), an hour at the
	// top and half of it at the last number. Nobody else has use for such a value, and
	// who sets one himself sets less (rtkit: 0.2 s).
	kinTop    = 1<<32 - 1 // the most that 32-bit kernels can tell from no limit
	kinStep   = 1 << 16   // leaves numbers for a berth that runs as such a program
	kinNumber = 1 << 15   // numbers are below

	// kinLook is how often the children of berth are looked at for orphans.
	kinLook = time.Second
)

// A kinship tells whose processes are whose.
type kinship struct {
	owns    bool
	foreign bool   // some children are neither programs nor of their descent
	base    uint64 // the limit that is no number; 0: numbers cannot be told
	step    uint64

	// starting is held for reading while a program starts, until it is known; who takes
	// children that are not known for strays holds it for writing.
	starting sync.RWMutex

	mu      mutex // guards what follows; held for no system call
	leaders map[int]*child
	numbers map[uint64]*child
	last    uint64
	tidying bool
	nudge   chan struct{}
}

func newKinship(owns bool) *kinship {
	k := &kinship{owns: owns, leaders: map[int]*child{}, numbers: map[uint64]*child{}, nudge: make(chan struct{}, 1)}
	k.last = rand.Uint64N(kinNumber) // another berth on this machine, as the runner is one, should be at others
	// The first process of a container is given orphans of all, and a script that
	// becomes berth by exec may have had children.
	_, err := peekChildren()
	k.foreign = os.Getpid() == 1 || err != unix.ECHILD
	var own unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_RTTIME, &own) == nil {
		k.numberBelow(own.Max)
	}
	return k
}

// numberBelow sets where numbers begin for a berth that runs under this limit.
func (k *kinship) numberBelow(own uint64) {
	switch {
	case own >= kinTop:
		k.base, k.step = kinTop, kinStep
	case own > kinTop/2 && own%kinStep == kinStep-1: // a number of another berth
		k.base, k.step = own, 1
	}
}

// limit is what number n is told by; 0: by nothing.
func (k *kinship) limit(n uint64) uint64 { return k.base - n*k.step }

// numberAt undoes limit. marked tells that the limit is below berth's own.
func (k *kinship) numberAt(limit uint64) (n uint64, marked bool) {
	if limit >= k.base {
		return 0, false
	}
	return (k.base - limit) / k.step, true
}

// peekChildren is ECHILD if this process has no child; dead tells that one waits
// to be reaped.
func peekChildren() (dead bool, err error) {
	var info unix.Siginfo
	for {
		if err = unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != unix.EINTR {
			return err == nil && info.Signo != 0, err
		}
	}
}

// start gives c a number, starts it by fork, and knows it from then on.
func (k *kinship) start(c *child, spec *helperSpec, fork func() (*os.Process, error)) (*os.Process, error) {
	k.mu.Lock()
	for c.number == 0 {
		if k.last++; k.last >= kinNumber {
			k.last = 1
		}
		if k.numbers[k.last] == nil {
			c.number = k.last
			k.numbers[c.number] = c
		}
	}
	k.mu.Unlock()
	spec.Mark = k.limit(c.number)
	k.starting.RLock()
	defer k.starting.RUnlock()
	proc, err := fork()
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		delete(k.numbers, c.number)
		return nil, err
	}
	c.pid = proc.Pid
	k.leaders[c.pid] = c
	if k.owns && !k.tidying {
		k.tidying = true
		go k.tidy()
	}
	return proc, nil
}

// forget is called when c has been reaped.
func (k *kinship) forget(c *child) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.numbers, c.number)
	if k.leaders[c.pid] == c { // and not another one under this pid already
		delete(k.leaders, c.pid)
	}
	select {
	case k.nudge <- struct{}{}:
	default:
	}
}

// number is that of the program to which a process belongs by its limit; 0: none
// that can be seen.
func (k *kinship) number(pid int) (n uint64, marked bool, err error) {
	var r unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_RTTIME, nil, &r); err != nil {
		return 0, false, err
	}
	n, marked = k.numberAt(r.Max)
	return n, marked, nil
}

// members is the processes that belong to c and are alive, its leader apart. Dead
// ones are taken away if they are children of this process.
func (k *kinship) members(c *child) []int {
	var live []int
	grouped := c.group.members()
	for pid := range processes() {
		if pid == c.pid {
			continue
		}
		n, _, _ := k.number(pid)
		if n == c.number && k.owns && !descends(pid) {
			continue // a program of another berth, with the same number
		}
		if n != c.number && !slices.Contains(grouped, pid) {
			// The leader is there still, if dead, so its number is nobody else's.
			if group, _ := unix.Getpgid(pid); group != c.pid {
				if session, _ := unix.Getsid(pid); session != c.pid {
					continue
				}
			}
		}
		if s, ok := processStat(pid); ok && !s.dead {
			live = append(live, pid)
		} else if ok {
			reap(pid)
		}
	}
	return live
}

// descends tells whether a process comes from this one, to which its orphans are
// given.
func descends(pid int) bool {
	self := os.Getpid()
	const again = 8 // who goes on ending while it is looked at is no stranger
	for range again {
		for p := pid; ; {
			s, ok := processStat(p)
			switch {
			case ok && s.parent == self:
				return true
			case ok && s.parent > 1:
				p = s.parent
				continue
			case ok || p == pid:
				return false
			}
			break // a parent has ended, so there is another one now
		}
	}
	return true
}

// reap takes a dead child away; it does nothing to a stranger's.
func reap(pid int) {
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG, nil) == unix.EINTR {
	}
}

// tidy looks after children that no program is known for, until there is neither a
// program nor such a child.
func (k *kinship) tidy() {
	t := time.NewTicker(kinLook)
	defer t.Stop()
	found := false
	for {
		asked := false
		select {
		case <-t.C:
		case <-k.nudge:
			asked = true
		}
		dead, err := peekChildren()
		if asked || found || dead {
			found = err != unix.ECHILD && k.sweep()
		}
		k.mu.Lock()
		if len(k.leaders) == 0 && !found {
			k.tidying = false
			k.mu.Unlock()
			return
		}
		k.mu.Unlock()
	}
}

// sweep reaps orphans that are dead, and ends those that do not belong to a program
// that runs: what has outlived its own, or does not want to be known. found tells
// that there were such.
func (k *kinship) sweep() (found bool) {
	self := os.Getpid()
	for pid := range processes() {
		s, ok := processStat(pid)
		if !ok || s.parent != self {
			continue
		}
		k.mu.Lock()
		leader := k.leaders[pid] != nil
		k.mu.Unlock()
		if !leader && k.stray(pid) {
			found = true
		}
	}
	return found
}

// stray does what is to be done about a child that seems to be no leader.
func (k *kinship) stray(pid int) (ended bool) {
	k.starting.Lock() // from here on every child that is a leader is known
	defer k.starting.Unlock()
	s, ok := processStat(pid)
	n, marked, err := k.number(pid)
	k.mu.Lock()
	leader, runs := k.leaders[pid] != nil, k.numbers[n] != nil
	k.mu.Unlock()
	switch {
	case !ok || s.parent != os.Getpid() || leader:
		return false
	case s.dead:
		reap(pid)
		return true // its own children may have come to us
	case runs || k.foreign && (!marked || err != nil):
		return false
	}
	unix.Kill(pid, unix.SIGKILL)
	return true
}

// ours tells whether a process belongs to a program of this launcher or of another
// berth, now or once. It is true of what is gone, since nobody knows whose that
// was. A server that knows its peers by user id asks this before it trusts one:
// programs have the same.
func (l *launcher) ours(pid int) bool {
	self := os.Getpid()
	if pid == self {
		return false
	}
	if _, marked, err := l.kin.number(pid); marked || err == unix.ESRCH {
		return true
	}
	session, _ := unix.Getsid(pid)
	group, _ := unix.Getpgid(pid)
	l.kin.mu.Lock()
	known := l.kin.leaders[session] != nil || l.kin.leaders[group] != nil
	l.kin.mu.Unlock()
	if known {
		return true
	}
	for p := pid; p > 1; {
		s, ok := processStat(p)
		if !ok {
			return true
		}
		if p = s.parent; p == self {
			return true
		}
	}
	return false
}

// end sees a program out that has ended, or is to: SIGTERM to all that belongs to
// it, then SIGKILL once the grace is over.
func (c *child) end(r *programResult) {
	grace := time.NewTimer(c.Grace)
	defer grace.Stop()
	gone := time.NewTimer(c.Grace + programGone)
	defer gone.Stop()
	kill := r.reason == programStartFailed // there is only the helper
	asked, look := false, programLookMin
	exited := c.exited
	for {
		select {
		case <-c.exited:
			exited = nil // closed, it would not let us wait
		default:
		}
		live := c.l.kin.members(c)
		if exited == nil && len(live) == 0 {
			break
		}
		switch {
		case kill:
			c.group.kill()
			c.signal(live, unix.SIGKILL)
		case !asked:
			asked = true
			if c.terminal != nil {
				c.signal(live, unix.SIGHUP) // as from a modem: an interactive shell ignores SIGTERM
			}
			c.signal(live, unix.SIGTERM)
			c.signal(live, unix.SIGCONT) // what is stopped must go on to hear it
		}
		t := time.NewTimer(look)
		select {
		case <-exited:
		case <-t.C:
			look = min(2*look, programLookMax)
		case <-grace.C:
			kill = true
		case <-gone.C:
			r.left = true
		}
		t.Stop()
		if r.left {
			break
		}
	}
	close(c.release)
	select {
	case <-c.exited:
		<-c.reaped
		r.setStatus(c)
	default: // watch reaps it whenever it ends
	}
	c.group.remove()
}

// signal reaches the program's group and what of it is elsewhere.
func (c *child) signal(live []int, sig syscall.Signal) {
	unix.Kill(-c.pid, sig)
	for _, pid := range live {
		if group, err := unix.Getpgid(pid); err == nil && group != c.pid {
			unix.Kill(pid, sig)
		}
	}
}

// look notes how much memory the program has used.
func (c *child) look() {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(c.pid) + "/status")
	if err != nil {
		return
	}
	_, rest, ok := bytes.Cut(status, []byte("\nVmHWM:"))
	if f := bytes.Fields(rest); ok && len(f) > 0 {
		kib, _ := strconv.ParseInt(string(f[0]), 10, 64)
		c.seen.Store(max(c.seen.Load(), kib<<10))
	}
}

// --- /proc ---

// processes are all that /proc shows, as it was read.
func processes() func(yield func(pid int) bool) {
	return func(yield func(pid int) bool) {
		dir, err := os.Open("/proc")
		if err != nil {
			return
		}
		names, _ := dir.Readdirnames(-1)
		dir.Close()
		for _, name := range names {
			if pid, err := strconv.Atoi(name); err == nil && !yield(pid) {
				return
			}
		}
	}
}

type processInfo struct {
	parent int
	dead   bool // and waits to be reaped, if it is there at all
}

// processStat is false if there is no such process.
func processStat(pid int) (s processInfo, ok bool) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return s, false
	}
	// proc_pid_stat(5): pid (name) state ppid …; the name may hold anything.
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 2 {
		return s, false
	}
	s.parent, err = strconv.Atoi(string(f[1]))
	s.dead = f[0][0] == 'Z' || f[0][0] == 'X'
	return s, err == nil
}

// rtSigaction sets a signal to its default.
func rtSigaction(sig uintptr) {
	// struct sigaction of rt_sigaction(2): all zero is SIG_DFL on every processor.
	var dfl [64]byte
	sigset := uintptr(8) // bytes of the kernel's sigset_t
	if strings.HasPrefix(runtime.GOARCH, "mips") {
		sigset = 16 // 128 signals; with another number the call is EINVAL
	}
	unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&dfl)), 0, sigset, 0, 0)
}

// --- cgroups ---

// childGroupPrefix begins the names of cgroups of programs.
const childGroupPrefix = "command-"

// A unitGroup is berth's own cgroup where it may make others (cgroups(7), delegation).
type unitGroup struct{ dir string }

// A childGroup is the cgroup of one program. All its methods work on nil.
type childGroup struct {
	dir string
	f   *os.File
}

// ownUnitGroup is nil if there is none that has been delegated to berth.
func ownUnitGroup() *unitGroup {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(data)) {
		path, ok := cutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			dir := filepath.Join(mount, path)
			var fs unix.Statfs_t
			if unix.Statfs(dir, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
				continue
			}
			// systemd puts the mark on what Delegate= gives away.
			for _, name := range []string{"trusted.delegate", "user.delegate"} {
				var b [2]byte
				if n, err := unix.Getxattr(dir, name, b[:]); err == nil && n == 1 && b[0] == '1' {
					left, _ := filepath.Glob(filepath.Join(dir, childGroupPrefix+"*"))
					for _, d := range left {
						os.Remove(d) // not if another berth has a program in it
					}
					return &unitGroup{dir: dir}
				}
			}
		}
	}
	return nil
}

func (u *unitGroup) add() (*childGroup, error) {
	if u == nil {
		return nil, nil
	}
	dir, err := os.MkdirTemp(u.dir, childGroupPrefix)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		os.Remove(dir)
		return nil, err
	}
	return &childGroup{dir: dir, f: f}, nil
}

// join makes what is started with sys begin in the group.
func (g *childGroup) join(sys *syscall.SysProcAttr) {
	if g != nil {
		sys.UseCgroupFD, sys.CgroupFD = true, int(g.f.Fd())
	}
}

// kill ends all that is in the group, also what is born meanwhile; before Linux
// 5.14 it does nothing.
func (g *childGroup) kill() {
	if g != nil {
		os.WriteFile(filepath.Join(g.dir, "cgroup.kill"), []byte("1"), 0)
	}
}

// members is who lives in the group; it does not list the dead.
func (g *childGroup) members() (pids []int) {
	if g == nil {
		return nil
	}
	data, _ := os.ReadFile(filepath.Join(g.dir, "cgroup.procs"))
	for _, word := range strings.Fields(string(data)) {
		if pid, err := strconv.Atoi(word); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// remove does so if nothing is left in the group. The kernel may take a moment to
// see that a process has gone; what remains all the same the next berth removes.
func (g *childGroup) remove() {
	if g == nil {
		return
	}
	g.f.Close()
	for look := programLookMin; os.Remove(g.dir) != nil && look <= programLookMax; look *= 2 {
		time.Sleep(look)
	}
}
