// sandbox.go is the helper that stands between berth and a program: berth starts
// itself again as "berth __run", and that process gives up all it may, shuts
// itself in, and becomes the program by execve(2). Go cannot run code between fork
// and exec, hence the process.
//
// Three layers keep a program in, each for what the others do not see: Landlock
// watches what is opened; in a mount namespace everything that it may not write is
// read-only, modes, owners and times included; and a filter of system calls
// (seccomp.go) has the rest. Where there can be no mount namespace the filter
// denies more.
//
// It also says what the sandbox lets a program reach. It knows no users and no
// configuration: the paths of a user are in the program that it is given.

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

const (
	helperVerb   = "__run"
	helperBinary = "/proc/self/exe" // berth as it runs, also if an upgrade has put another in its place

	// Descriptors of the helper beside the program's own three.
	helperSpecFD  = 3
	helperReadyFD = 4

	// helperWordMax bounds what a helper says: a path of PATH_MAX in JSON and the
	// words around it.
	helperWordMax = 64 << 10

	// programFiles is RLIMIT_NOFILE: what fits into select(2)'s FD_SETSIZE, and the
	// kernel's own default.
	programFiles = 1024

	// programProcesses is RLIMIT_NPROC, against fork bombs. It counts all threads of
	// the user id, so it must leave room for a desktop's and for those of berth and of
	// other commands. It does not hold for root.
	programProcesses = 4096

	// programOOMScore makes the kernel take a command before berth when memory runs
	// out: 500 stands for half of the memory (proc_pid_oom_score_adj(5)).
	programOOMScore = "500"

	programUmask = 0o022

	// mountRetry is how long no command tries to get a mount namespace after one could
	// not: what denies it is a setting, which may change.
	mountRetry = time.Minute

	capabilityLast = 63 // the kernel says where they end; two words of 32 bits can hold these
)

// helperEnv is the environment of the helper itself, which lives for milliseconds
// on one thread.
var helperEnv = []string{"GOGC=off", "GOMAXPROCS=1"}

// A sandbox is what a program may reach beyond the system's directories, by
// absolute path. What is missing is left out.
type sandbox struct {
	BestEffort bool      `json:"best_effort,omitempty"` // false: refuse to run where the kernel has no Landlock
	Read       []rawText `json:"read,omitempty"`        // with all below it; execute, too
	Write      []rawText `json:"write,omitempty"`       // read, execute and change
}

// helperSpec is what the helper is told.
type helperSpec struct {
	program
	Parent   int     `json:"parent"`             // berth
	Terminal rawText `json:"terminal,omitempty"` // its path
	Mark     uint64  `json:"mark,omitempty"`     // see kinship
	Mounts   bool    `json:"mounts,omitempty"`   // try to get a mount namespace
}

// A helperFailure is why a helper did not become the program.
type helperFailure struct {
	Stage string  `json:"stage"`
	Path  rawText `json:"path,omitempty"`
	Errno int     `json:"errno,omitempty"`
	Text  string  `json:"text"`
}

const (
	helperStageMount = "get mounts of its own"
	helperStageRun   = "run" // the execve(2) itself
)

func (f *helperFailure) Error() string {
	if f.Path != "" {
		return fmt.Sprintf("%s %s: %s", f.Stage, strconv.Quote(string(f.Path)), f.Text)
	}
	return f.Stage + ": " + f.Text
}

// Unwrap makes errors.Is work with the kernel's error.
func (f *helperFailure) Unwrap() error {
	if f.Errno == 0 {
		return nil
	}
	return syscall.Errno(f.Errno)
}

// exit is the status that a shell would have given.
func (f *helperFailure) exit() int {
	switch {
	case f.Stage != helperStageRun:
		return -1
	case f.Errno == int(unix.ENOENT) || f.Errno == int(unix.ENOTDIR):
		return programNotFound
	}
	return programNotExecutable
}

// readHelperWord waits for the helper to become the program, or not to.
func readHelperWord(r io.Reader) helperWord {
	said, err := io.ReadAll(io.LimitReader(r, helperWordMax))
	ready, rest, _ := cutText(string(said), "\n")
	words, ok := cutPrefix(ready, "ready ")
	if !ok {
		rest = ready
	}
	floor, lack, _ := cutText(words, " ")
	if rest == "" {
		if n, err := strconv.ParseInt(floor, 10, 64); ok && err == nil {
			return helperWord{floor: n, lack: lack}
		}
	}
	var f helperFailure
	if json.Unmarshal([]byte(rest), &f) == nil && f.Stage != "" {
		return helperWord{fail: &f, lack: lack}
	}
	text := "it ended before it could"
	if err != nil {
		text = err.Error()
	}
	return helperWord{fail: &helperFailure{Stage: "prepare the program", Text: text}}
}

// runHelper is the verb __run. It returns only if it could not become the program.
func runHelper(stderr io.Writer) int {
	// What follows is by thread: capabilities, the parent-death signal, and who calls
	// execve(2).
	runtime.LockOSThread()
	var st unix.Stat_t
	if unix.Fstat(helperReadyFD, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		fmt.Fprintf(stderr, "berth %s: berth calls this itself, for each command that it runs\n", helperVerb)
		return exitUsage
	}
	sealDescriptors()
	ready := os.NewFile(helperReadyFD, "ready")
	words := os.NewFile(helperSpecFD, "spec")
	var spec helperSpec
	err := json.NewDecoder(words).Decode(&spec)
	words.Close()
	f := &helperFailure{Stage: "read what to run"}
	if err == nil {
		f, err = spec.become(ready)
	}
	f.Text = err.Error()
	var errno syscall.Errno
	if errors.As(err, &errno) {
		f.Errno = int(errno)
		if f.Stage == helperStageRun {
			f.Text = errno.Error()
		}
	}
	json.NewEncoder(ready).Encode(f)
	return exitFailed
}

// become makes this process the program, or says where that went wrong.
func (s *helperSpec) become(ready io.Writer) (*helperFailure, error) {
	fail := func(stage string, err error) (*helperFailure, error) { return &helperFailure{Stage: stage}, err }
	// The setting of the thread that berth forked does not hold for this one, and
	// berth may have gone before it was made.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fail("ask to end with berth", err)
	}
	if os.Getppid() != s.Parent {
		return fail("ask to end with berth", errors.New("it has ended already"))
	}
	unix.Umask(programUmask)
	os.WriteFile("/proc/self/oom_score_adj", []byte(programOOMScore), 0) // what runs without /proc runs without it
	if err := s.limit(); err != nil {
		return fail("set limits", err)
	}
	// setgroups(2) for this thread; without CAP_SETGID it cannot be done, and the
	// groups are those that the operator gave berth.
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 && e != unix.EPERM {
		return fail("leave supplementary groups", e)
	}
	reach, lack := filterStrict, ""
	if s.Sandbox != nil {
		var err error
		if reach, lack, err = s.isolate(); err != nil {
			return fail(helperStageMount, err)
		}
	}
	if err := s.enter(); err != nil {
		return &helperFailure{Stage: "go to the working directory", Path: s.Dir}, err
	}
	if s.Sandbox != nil {
		err := s.confine(reach)
		if errors.Is(err, errNoFilter) { // Linux without CONFIG_SECCOMP_FILTER
			lack = err.Error()
		} else if err != nil {
			return fail("enter the sandbox", err)
		}
	}
	resetSignals()
	argv, env := plainTexts(s.Argv), plainTexts(s.Env)
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	word := strings.TrimRight(fmt.Sprintf("ready %d %s", int64(u.Maxrss)<<10, strings.ReplaceAll(lack, "\n", " ")), " ")
	if _, err := fmt.Fprintln(ready, word); err != nil {
		return fail("report", err)
	}
	err := syscall.Exec(argv[0], argv, env)
	return &helperFailure{Stage: helperStageRun, Path: s.Argv[0]}, err
}

// sealDescriptors marks every descriptor but the first three close-on-exec. All
// that berth opens is; what it was started with itself need not be, such as the
// lock file of a script that runs "berth demo 9>lock".
func sealDescriptors() {
	const first = 3
	if unix.CloseRange(first, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	// Before Linux 5.11, close_range(2).
	fds, err := namesIn("/proc/self/fd")
	if err != nil {
		return
	}
	for _, name := range fds {
		if fd, err := strconv.Atoi(name); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
}

// limit sets resource limits, none above what berth has.
func (s *helperSpec) limit() error {
	limits := []struct {
		resource int
		most     uint64
	}{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_NOFILE, programFiles},
		{unix.RLIMIT_NPROC, programProcesses},
		{unix.RLIMIT_FSIZE, uint64(s.FileSize)},
		{unix.RLIMIT_CPU, 0},
		{unix.RLIMIT_RTTIME, s.Mark},
	}
	for _, l := range limits {
		switch {
		case l.resource == unix.RLIMIT_CPU && s.Timeout > 0:
			// For what has got away from berth: more than all processors give until the
			// program's last moment.
			all := (s.Timeout + s.Grace + programGone) / time.Second
			l.most = uint64(all+1) * uint64(runtime.NumCPU())
		case l.resource != unix.RLIMIT_CORE && l.most == 0:
			continue
		}
		var r unix.Rlimit
		if err := unix.Getrlimit(l.resource, &r); err != nil {
			return err
		}
		r.Max = min(r.Max, l.most)
		r.Cur = min(r.Cur, r.Max)
		if err := unix.Setrlimit(l.resource, &r); err != nil {
			return err
		}
	}
	return nil
}

// enter goes to the working directory. A symlink that the user has put there may
// lead anywhere within Root, and the directory above it is nobody's business.
func (s *helperSpec) enter() error {
	root, err := os.OpenRoot(string(s.Root))
	if err != nil {
		return err
	}
	// Not to wait for the other end of a FIFO that is there instead.
	f, err := root.OpenFile(string(s.Dir), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return f.Chdir()
}

// resetSignals gives the program the signals as a login shell has them: none
// ignored, none blocked. Handlers do not outlive execve(2).
func resetSignals() {
	const last = 64
	for sig := uintptr(1); sig <= last; sig++ {
		rtSigaction(sig)
	}
	var none unix.Sigset_t
	unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil)
}

// --- the mount namespace ---

// lackMounts begins the reason why there is no mount namespace.
const lackMounts = "mount namespace: "

// A mountGate knows how programs of this berth get a mount namespace, and keeps
// them from trying in vain.
type mountGate struct {
	log   *slog.Logger
	owner bool // may have one as it is; else within a user namespace

	mu   mutex
	shut time.Time // until then no command tries
	said string    // why, as it was logged last
}

func newMountGate(log *slog.Logger) *mountGate {
	return &mountGate{log: log, owner: os.Geteuid() == 0 && hasCapability(unix.CAP_SYS_ADMIN)}
}

func hasCapability(c int) bool {
	var caps [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &caps[0])
	return err == nil && caps[c/32].Effective&(1<<(c%32)) != 0
}

func (g *mountGate) open() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Now().After(g.shut)
}

// fail is called when a command could not have all layers, and why.
func (g *mountGate) fail(why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if beginsWith(why, lackMounts) {
		g.shut = time.Now().Add(mountRetry)
	}
	if g.said != why {
		g.said = why
		g.log.Warn("commands run with fewer layers of the sandbox", "missing", why)
	}
}

// namespace makes what is started with sys begin in a user namespace, of the same
// user and group, where it may mount. A program that drops what it has there has
// less than outside.
func (g *mountGate) namespace(sys *syscall.SysProcAttr) *syscall.SysProcAttr {
	if g.owner {
		return sys
	}
	in := *sys
	in.Cloneflags |= unix.CLONE_NEWUSER
	in.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
	in.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	in.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP} // only such outlive execve(2)
	return &in
}

// start starts the helper of spec by fork, with a user namespace if it needs one
// and can have it.
func (g *mountGate) start(spec *helperSpec, sys *syscall.SysProcAttr, fork func(*syscall.SysProcAttr) (*os.Process, error)) (*os.Process, error) {
	spec.Mounts = spec.Sandbox != nil && g.open()
	if !spec.Mounts {
		return fork(sys)
	}
	in := g.namespace(sys)
	proc, err := fork(in)
	if err == nil || in == sys {
		return proc, err
	}
	spec.Mounts = false
	proc, err2 := fork(sys)
	if err2 == nil {
		g.fail(lackMounts + "user namespace: " + err.Error())
	}
	return proc, err2
}

// isolate makes everything read-only for this process but what the sandbox lets it
// write, and tells what is left to the filter, and why if that is more than usual.
// After an error nothing can be run.
func (s *helperSpec) isolate() (reach filterReach, lack string, err error) {
	if s.Mounts {
		over, err := s.mount()
		if err == nil {
			return filterMounted, "", s.reopen()
		}
		if over {
			return filterStrict, "", err
		}
		lack = lackMounts + err.Error()
	}
	if os.Geteuid() == 0 || len(s.Sandbox.Read) > 0 || landlockABI() == 0 {
		return filterStrict, lack, nil
	}
	return filterOpened, lack, nil
}

// mount does so; over tells that an error came too late to go on without.
func (s *helperSpec) mount() (over bool, err error) {
	// System V's shared memory has no names that Landlock would see.
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWIPC); err != nil {
		return false, errorf("unshare: %w", err)
	}
	// Set aside before the rest turns read-only, the mounts below keep what they are.
	type tree struct {
		path string
		fd   int
	}
	var trees []tree
	defer func() {
		for _, t := range trees {
			unix.Close(t.fd)
		}
	}()
	for _, path := range s.Sandbox.writable() {
		fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return false, errorf("open_tree %s: %w", strconv.Quote(path), err)
		}
		trees = append(trees, tree{path, fd})
		// What is mounted here is not to show outside.
		own := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_PRIVATE}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &own); err != nil {
			return false, errorf("mount_setattr %s: %w", strconv.Quote(path), err)
		}
	}
	all := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &all); err != nil {
		return false, errorf("mount_setattr /: %w", err) // it changes all or nothing
	}
	for _, t := range trees {
		if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, t.path, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS); err != nil {
			return true, errorf("move_mount %s: %w", strconv.Quote(t.path), err)
		}
	}
	return false, nil
}

// writable is the directories and files to write, what is in another of them left
// out. Devices, sockets and FIFOs can be written to on a read-only mount.
func (b *sandbox) writable() (paths []string) {
	for _, path := range plainTexts(b.Write) {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		if real, err := filepath.EvalSymlinks(path); err == nil {
			paths = append(paths, real)
		}
	}
	slices.Sort(paths)
	kept := paths[:0]
	for _, path := range paths {
		if !slices.ContainsFunc(kept, func(above string) bool {
			return path == above || beginsWith(path, strings.TrimSuffix(above, "/")+"/")
		}) {
			kept = append(kept, path)
		}
	}
	return kept
}

// reopen replaces what was opened outside and can be changed by its descriptor.
func (s *helperSpec) reopen() error {
	path, fds := os.DevNull, []int{0}
	if s.TTY != nil {
		path, fds = string(s.Terminal), []int{0, 1, 2}
	} else if s.Stdin {
		return nil // pipes, which are its own
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errorf("open %s: %w", path, err)
	}
	for _, old := range fds {
		if err := unix.Dup3(fd, old, 0); err != nil {
			return err
		}
	}
	return unix.Close(fd)
}

// sandboxLayers is what keeps commands in on this machine, in a few words. Whether a
// mount namespace can really be had the first command shows, and the log says.
func sandboxLayers() string {
	var layers []string
	if abi := landlockABI(); abi > 0 {
		layers = append(layers, fmt.Sprintf("Landlock ABI %d", abi))
	}
	if mountsLikely() {
		layers = append(layers, "mount namespace")
	}
	if filterArches(runtime.GOARCH) != nil && seccompThere() {
		layers = append(layers, "seccomp")
	}
	return strings.Join(layers, ", ")
}

// mountsLikely looks at the settings that take namespaces away.
func mountsLikely() bool {
	if os.Geteuid() == 0 && hasCapability(unix.CAP_SYS_ADMIN) {
		return true
	}
	if _, err := os.Stat("/proc/self/ns/user"); err != nil {
		return false
	}
	for path, never := range map[string]string{
		"/proc/sys/user/max_user_namespaces":                     "0",
		"/proc/sys/kernel/unprivileged_userns_clone":             "0", // Debian's kernels
		"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1", // Ubuntu's
	} {
		if value, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(value)) == never {
			return false
		}
	}
	return true
}

// seccompThere asks whether the kernel takes filters, as seccomp(2) says.
func seccompThere() bool {
	action := uint32(unix.SECCOMP_RET_ERRNO)
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	return e != unix.ENOSYS
}

// --- Landlock ---

// landlockVersions is what this berth knows to ask for, by ABI.
var landlockVersions = [...]landlock.Config{
	1: landlock.V1, 2: landlock.V2, 3: landlock.V3, 4: landlock.V4, 5: landlock.V5, 6: landlock.V6,
	7: landlock.V7, 8: landlock.V8, 9: landlock.V9, 10: landlock.V10, 11: landlock.V11,
}

// ABIs that brought what the rules below need (landlock(7)).
const (
	landlockRefer    = 2
	landlockTruncate = 3
	landlockIoctl    = 5
	landlockScopes   = 6
	landlockUnix     = 9
)

// landlockABI is the version of Landlock that commands are run under, which is the
// kernel's or the last that berth knows; 0: the kernel has none.
func landlockABI() int {
	v, err := ll.LandlockGetABIVersion()
	if err != nil {
		return 0
	}
	return min(v, len(landlockVersions)-1)
}

// sandboxProblem is nil if commands may run with [exec] sandbox = mode on this
// kernel, and else says why not and what to do.
func sandboxProblem(mode string) error { return sandboxProblemAt(mode, landlockABI()) }

func sandboxProblemAt(mode string, abi int) error {
	if mode != "landlock" || abi > 0 {
		return nil
	}
	return errors.New(`this kernel has no Landlock to keep commands in their user's home: use Linux 5.13 or later with "landlock" ` +
		`in its lsm= list, in a container also an engine whose seccomp profile lets Landlock through, or run commands without by exec.sandbox = "best-effort" or "off"`)
}

const (
	landlockReadFS  = ll.AccessFSReadFile | ll.AccessFSReadDir
	landlockRunFS   = landlockReadFS | ll.AccessFSExecute
	landlockWriteFS = landlockRunFS | ll.AccessFSWriteFile | ll.AccessFSRemoveDir | ll.AccessFSRemoveFile |
		ll.AccessFSMakeDir | ll.AccessFSMakeReg | ll.AccessFSMakeSock | ll.AccessFSMakeFifo | ll.AccessFSMakeSym |
		ll.AccessFSRefer | ll.AccessFSTruncate | ll.AccessFSIoctlDev | ll.AccessFSResolveUnix
	landlockDeviceFS = ll.AccessFSReadFile | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSIoctlDev
	landlockFileFS   = ll.AccessFSExecute | ll.AccessFSReadFile | ll.AccessFSWriteFile | ll.AccessFSTruncate |
		ll.AccessFSIoctlDev | ll.AccessFSResolveUnix // what a rule for one file may have
)

// What every program may reach. Of /etc it is what programs need to know of the
// system, by name: the whole of it has the secrets of others, berth's among them.
var (
	systemRun   = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt"}
	systemRead  = []string{"/proc", "/sys", "/run/systemd/resolve", "/run/utmp"}
	systemWrite = []string{"null", "zero", "full", "random", "urandom", "tty"} // in /dev
	systemEtc   = []string{
		"ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload", // the loader
		"passwd", "group", "nsswitch.conf", "shells", "login.defs", // who is who
		"localtime", "timezone", "locale.alias", "locale.conf",
		"hosts", "host.conf", "hostname", "networks", "resolv.conf", "gai.conf", "services", "protocols", "rpc",
		"ssl/certs", "ssl/openssl.cnf", "ca-certificates", "pki/tls/certs", "pki/ca-trust", "crypto-policies", // but no keys
		"alternatives", "os-release", "debian_version", "lsb-release", "machine-id",
		"terminfo", "profile", "profile.d", "bash.bashrc", "bashrc", "inputrc",
		"mime.types", "magic", "magic.mime", "fonts", "perl", "python3", "gitconfig", "mke2fs.conf", "mtab", "fstab",
	}

	// Sockets of services that answer anybody: the log and names. Who connects is
	// told by the kernel, so for root even the bus is a way out of every sandbox.
	systemSockets     = []string{"/dev/log", "/run/systemd/journal", "/run/systemd/resolve", "/run/nscd", "/run/systemd/userdb"}
	systemUserSockets = []string{"/run/dbus/system_bus_socket"}
)

// confine gives up everything that the sandbox does not leave the program. After
// errNoFilter all but that has been done.
func (s *helperSpec) confine(reach filterReach) error {
	abi := landlockABI()
	if abi == 0 && !s.Sandbox.BestEffort {
		return sandboxProblemAt("landlock", abi)
	}
	// prctl(2): no set-user-ID program and no file capability has an effect from here on.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if abi > 0 {
		if err := s.landlock(abi); err != nil {
			return err
		}
	}
	if err := dropCapabilities(); err != nil {
		return err
	}
	return setFilter(reach) // last: it would deny some of the above
}

// landlock restricts this process. The rights are exactly those of the ABI:
// go-landlock's own best effort would give up all of them where one is missing.
func (s *helperSpec) landlock(abi int) error {
	known := landlockVersions[abi]
	handled := known.HandledAccessFS
	var rules []landlock.Rule
	allow := func(access landlock.AccessFSSet, path string) {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil {
			return
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			access &= landlockFileFS
		}
		if access &= handled; access != 0 {
			rules = append(rules, landlock.PathAccess(access, path).IgnoreIfMissing())
		}
	}
	for _, path := range systemRun {
		allow(landlockRunFS, path)
	}
	for _, path := range systemRead {
		allow(landlockReadFS, path)
	}
	for _, name := range systemEtc {
		allow(landlockReadFS, joinPath("/etc", name))
	}
	for _, name := range systemWrite {
		allow(landlockDeviceFS, joinPath("/dev", name))
	}
	if s.Terminal != "" {
		allow(landlockDeviceFS, string(s.Terminal))
	}
	if abi >= landlockUnix {
		for _, path := range systemSockets {
			allow(ll.AccessFSResolveUnix, path)
		}
		if os.Geteuid() != 0 {
			for _, path := range systemUserSockets {
				allow(ll.AccessFSResolveUnix, path)
			}
		}
	}
	for _, path := range s.Sandbox.Read {
		allow(landlockRunFS, string(path))
	}
	for _, path := range s.Sandbox.Write {
		allow(landlockWriteFS, string(path))
	}
	return landlock.Config{HandledAccessFS: handled, Scoped: known.Scoped}.Restrict(rules...)
}

// dropCapabilities leaves this thread none, nor a way for root to get them back.
func dropCapabilities() error {
	unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) // before Linux 4.3 there are none
	for c := uintptr(0); c <= capabilityLast; c++ {
		// EPERM: who has no CAP_SETPCAP is kept from them by no_new_privs.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			break
		}
	}
	var none [2]unix.CapUserData
	err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0])
	if err == unix.EPERM {
		// A unit's filter of system calls denies capset(2) with the rest of @privileged.
		// Who has nothing to give up does not need it.
		var has [2]unix.CapUserData
		if unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &has[0]) == nil && has == none {
			return nil
		}
	}
	return err
}
