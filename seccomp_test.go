package main

// The filter of system calls, as the kernel would run it, for every processor; and
// what the layers of a sandbox keep in together, in each combination that there is.

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// runFilter decides one call by the program (linux/bpf_common.h).
func runFilter(t *testing.T, prog []unix.SockFilter, audit, call uint32, args ...uint64) uint32 {
	t.Helper()
	var data [64]byte
	binary.LittleEndian.PutUint32(data[filterNumber:], call)
	binary.LittleEndian.PutUint32(data[filterAudit:], audit)
	for i, a := range args {
		binary.LittleEndian.PutUint64(data[filterArgs+8*i:], a)
	}
	var acc uint32
	for pc := 0; pc < len(prog); pc++ {
		op, hit := prog[pc], false
		switch op.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = binary.LittleEndian.Uint32(data[op.K:])
			continue
		case unix.BPF_RET | unix.BPF_K:
			return op.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(op.K)
			continue
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			hit = acc == op.K
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			hit = acc > op.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			hit = acc >= op.K
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			hit = acc&op.K != 0
		default:
			t.Fatalf("instruction %d: code %#x", pc, op.Code)
		}
		if hit {
			pc += int(op.Jt)
		} else {
			pc += int(op.Jf)
		}
	}
	t.Fatal("the program has no end")
	return 0
}

func TestFilterDecides(t *testing.T) {
	const (
		yes    = unix.SECCOMP_RET_ALLOW
		no     = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
		nosys  = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
		ptr    = 0x7f00_0000_1000
		minus1 = 0xffff_ffff
	)
	for _, c := range []struct {
		call                    string
		args                    []uint64
		mounted, opened, strict uint32
	}{
		{"chmod", []uint64{ptr, 0o755}, yes, no, no},
		{"chmod", []uint64{ptr, 0o4755}, no, no, no},
		{"fchmod", []uint64{3, 0o644}, yes, yes, no},
		{"fchmod", []uint64{3, 0o2755}, no, no, no},
		{"fchmodat", []uint64{3, ptr, 0o1777}, yes, no, no},
		{"fchmodat2", []uint64{3, ptr, 0o6000}, no, no, no},
		{"lchown", []uint64{ptr, 0, 0}, yes, no, no},
		{"chown32", []uint64{ptr, 0, 0}, yes, no, no},
		{"fchownat", []uint64{3, ptr, 0, 0, 0}, yes, no, no},
		{"fchown", []uint64{3, 0, 0}, yes, yes, no},
		{"utimensat", []uint64{minus1, ptr, ptr, 0}, yes, no, no},
		{"utimensat", []uint64{3, 0x5_0000_0000, ptr, 0}, yes, no, no},
		{"utimensat", []uint64{3, 0, ptr, 0}, yes, yes, no},
		{"utimensat_time64", []uint64{3, ptr, ptr, 0}, yes, no, no},
		{"utime", []uint64{ptr, 0}, yes, no, no},
		{"setxattrat", []uint64{3, ptr}, yes, no, no},
		{"fsetxattr", []uint64{3, ptr}, yes, yes, no},
		{"file_setattr", []uint64{3, ptr}, yes, no, no},
		{"open", []uint64{ptr, unix.O_RDONLY, 0o6777}, yes, yes, yes}, // without O_CREAT there is no mode
		{"open", []uint64{ptr, unix.O_CREAT, 0o644}, yes, yes, yes},
		{"open", []uint64{ptr, unix.O_CREAT, 0o4755}, no, no, no},
		{"openat", []uint64{3, ptr, 0x400000, 0o2755}, no, no, no}, // __O_TMPFILE
		{"openat2", []uint64{3, ptr, ptr, 24}, nosys, nosys, nosys},
		{"mkdirat", []uint64{3, ptr, 0o2755}, no, no, no},
		{"mkdir", []uint64{ptr, 0o700}, yes, yes, yes},
		{"mknod", []uint64{ptr, unix.S_IFREG | 0o4755}, no, no, no},
		{"prlimit64", []uint64{0, 7, ptr, 0}, yes, yes, yes},
		{"prlimit64", []uint64{1234, 7, 0, ptr}, yes, yes, yes},
		{"prlimit64", []uint64{1234, 7, ptr, 0}, no, no, no},
		{"prlimit64", []uint64{1234, 7, 0x5_0000_0000, 0}, no, no, no},
		{"setpriority", []uint64{unix.PRIO_PROCESS, 0, 5}, yes, yes, yes},
		{"setpriority", []uint64{unix.PRIO_PROCESS, 1234, 5}, no, no, no},
		{"setpriority", []uint64{unix.PRIO_USER, 0, 5}, no, no, no},
		{"ioprio_set", []uint64{1, 0, 0}, yes, yes, yes},
		{"ioprio_set", []uint64{3, 0, 0}, no, no, no},
		{"sched_setattr", []uint64{0, ptr, 0}, yes, yes, yes},
		{"sched_setaffinity", []uint64{1234, 8, ptr}, no, no, no},
		{"clone", []uint64{uint64(unix.SIGCHLD)}, yes, yes, yes},
		{"clone", []uint64{unix.CLONE_NEWUSER | uint64(unix.SIGCHLD)}, no, no, no},
		{"clone3", []uint64{ptr, 88}, nosys, nosys, nosys},
		{"unshare", []uint64{unix.CLONE_FILES}, yes, yes, yes},
		{"unshare", []uint64{unix.CLONE_NEWNS}, no, no, no},
		{"ioctl", []uint64{0, unix.TCGETS, ptr}, yes, yes, yes},
		{"ioctl", []uint64{0, unix.TIOCSTI, ptr}, no, no, no},
		{"ioctl", []uint64{0, 0x1_0000_0000 | unix.TIOCSTI, ptr}, no, no, no}, // the kernel looks at 32 bits
		{"ioctl", []uint64{0, unix.TIOCLINUX, ptr}, no, no, no},
		{"ioctl", []uint64{0, ioctlSetFlags64, ptr}, yes, yes, no},
		{"ioctl", []uint64{0, 0x80046602, ptr}, yes, yes, no}, // as MIPS has it
		{"syscall", []uint64{4090, ptr, 0o755}, nosys, nosys, nosys},
		{"mount", nil, no, no, no},
		{"umount2", nil, no, no, no},
		{"io_uring_setup", nil, no, no, no},
		{"setns", nil, no, no, no},
	} {
		for _, goarch := range []string{"amd64", "arm64", "riscv64", "mipsle"} {
			for _, a := range filterArches(goarch) {
				call := filterCalls[c.call][a.column]
				if call == 0 {
					continue
				}
				for reach, want := range []uint32{c.mounted, c.opened, c.strict} {
					if got := runFilter(t, seccompFilter(goarch, filterReach(reach)), a.audit, call, c.args...); got != want {
						t.Errorf("%s%#x at %#x, reach %d: %#x; want %#x", c.call, c.args, a.audit, reach, got, want)
					}
				}
			}
		}
	}
	prog := seccompFilter("amd64", filterMounted)
	if got := runFilter(t, prog, unix.AUDIT_ARCH_X86_64, filterX32|1); got != nosys {
		t.Errorf("x32: %#x", got)
	}
	if got := runFilter(t, prog, unix.AUDIT_ARCH_AARCH64, 1); got != nosys {
		t.Errorf("another processor: %#x", got)
	}
	if got := runFilter(t, prog, unix.AUDIT_ARCH_X86_64, 0); got != yes {
		t.Errorf("read: %#x", got)
	}
}

// The numbers are those of x/sys, whose tables the kernel's headers made.
func TestFilterNumbers(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil || len(bytes.TrimSpace(dir)) == 0 {
		t.Skip("no module cache: ", err)
	}
	define := regexp.MustCompile(`(?m)^\s+SYS_(\w+)\s+= (\d+)$`)
	for column, goarch := range []string{"amd64", "386", "arm64", "arm", "riscv64", "mipsle"} {
		table, err := os.ReadFile(filepath.Join(string(bytes.TrimSpace(dir)), "unix", "zsysnum_linux_"+goarch+".go"))
		if err != nil {
			t.Skip(err)
		}
		numbers := map[string]uint32{}
		for _, m := range define.FindAllStringSubmatch(string(table), -1) {
			n, _ := strconv.ParseUint(m[2], 10, 32)
			numbers[strings.ToLower(m[1])] = uint32(n)
		}
		for call, row := range filterCalls {
			if row[column] != numbers[call] {
				t.Errorf("%s of %s is %d; want %d", call, goarch, row[column], numbers[call])
			}
		}
	}
	for reach := filterMounted; reach <= filterStrict; reach++ {
		for _, r := range filterRules(reach) {
			if _, ok := filterCalls[r.call]; !ok {
				t.Errorf("no number for %s", r.call)
			}
		}
	}
}

// --- all layers ---

// layersVerb makes the test binary a berth that runs one program, from stdin, whose
// output is its own. It is there to run as another user.
const layersVerb = "__layers"

// How a berth can get a mount namespace, or not.
const (
	layersAll    = "all"     // as this machine lets it
	layersNoFork = "no fork" // cloning into a user namespace fails
)

func init() {
	if len(os.Args) != 3 || os.Args[1] != layersVerb {
		return
	}
	var p program
	if err := json.NewDecoder(os.Stdin).Decode(&p); err != nil {
		panic(err)
	}
	l := newLauncher(slog.New(slog.NewTextHandler(os.Stderr, nil)), false)
	if os.Args[2] == layersNoFork {
		l.gate.owner = false
		l.fork = func(attr *os.ProcAttr) (*os.Process, error) {
			if attr.Sys.Cloneflags != 0 {
				return nil, unix.ENOSPC
			}
			return startHelper(attr)
		}
	}
	r := l.run(context.Background(), p, programIO{output: func(_ byte, b []byte) error {
		_, err := os.Stdout.Write(b)
		return err
	}})
	fmt.Fprintf(os.Stderr, "%s exit %d: %v\n", r.reason, r.exit, r.err)
	os.Exit(0)
}

// A layersCase is a berth of some uid with some layers.
type layersCase struct {
	uid  int
	mode string
}

func (c layersCase) String() string { return fmt.Sprintf("uid %d, %s", c.uid, c.mode) }

// A layersHome is directories of one user: what a program may write, may read, and
// may not touch.
type layersHome struct{ base, home, read, other string }

func newLayersHome(t *testing.T, uid int) layersHome {
	base, err := os.MkdirTemp("", "berth-layers-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	h := layersHome{base, base + "/home", base + "/read", base + "/other"}
	for _, dir := range []string{base, h.home, h.read, h.other} {
		os.Mkdir(dir, 0o755)
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(dir+"/file", []byte("x\n"), 0o644)
		os.Chown(dir+"/file", uid, uid)
		if err := os.Chown(dir, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// program is a script in a sandbox around the home.
func (h layersHome) program(script string, env ...string) program {
	env = append(env, "PATH="+programPath, "HOME="+h.home, "TMPDIR="+h.home, "READ="+h.read, "OTHER="+h.other)
	return program{Argv: rawTexts([]string{"/bin/sh", "-c", script}), Env: rawTexts(env), Root: rawText(h.home), Dir: ".",
		Timeout: time.Minute, Grace: time.Second, Sandbox: &sandbox{Read: rawTexts([]string{h.read}), Write: rawTexts([]string{h.home})}}
}

func (c layersCase) run(t *testing.T, p program) (out, log string) {
	t.Helper()
	spec, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", layersVerb, c.mode) // others need not reach its directory
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // with -race, an exit takes a second
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(c.uid), Gid: uint32(c.uid)}}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(spec), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	return stdout.String(), stderr.String()
}

// layersCases is what can be tried here.
func layersCases() (cases []layersCase) {
	uids := []int{os.Geteuid()}
	if uids[0] == 0 {
		uids = append(uids, 65534)
	}
	for _, uid := range uids {
		for _, mode := range []string{layersAll, layersNoFork} {
			cases = append(cases, layersCase{uid, mode})
		}
	}
	return cases
}

// reach is what the filter has to see to: by what a program could do.
func (c layersCase) reach(t *testing.T, h layersHome) filterReach {
	p := h.program("chmod 644 file && exit; perl -e 'open F, q(<), q(file); exit(chmod(0644, *F) ? 1 : 2)'")
	p.Sandbox.Read = nil
	_, log := c.run(t, p)
	switch {
	case strings.Contains(log, "exit 0"):
		return filterMounted
	case strings.Contains(log, "exit 1"):
		return filterOpened
	}
	return filterStrict
}

func TestLayersKeepProgramsIn(t *testing.T) {
	needLandlock(t)
	if runtime.GOARCH != "amd64" {
		t.Skip("the calls below are made by amd64's numbers")
	}
	perl := func(code string) string {
		return "perl -MFcntl -e '$! = 0; sub call { $r = syscall($_[0], @_[1..$#_]); $r != -1 or die qq($!\\n) } " + code + "'"
	}
	read := `open F, q(<), "$ENV{READ}/file" or die; `
	escapes := []struct {
		name, script string
		control      bool // without a sandbox it can be tried, and works
	}{
		{"mode of a directory", `chmod 751 "$OTHER"`, true},
		{"mode of a file", `chmod 600 "$OTHER/file"`, true},
		{"mode by fchmodat2", perl(`$p = "$ENV{OTHER}/file"; call(452, -100, $p, 0600, 0)`), false},
		{"times", `touch -d 2001-01-01 "$OTHER/file"`, true},
		{"times by utime", perl(`utime(1, 1, "$ENV{OTHER}/file") or die`), true},
		{"owner", `chown "$(id -u)" "$OTHER/file"`, true},
		{"group", `chgrp "$(id -g)" "$OTHER"`, true},
		{"attribute", perl(`$p = "$ENV{OTHER}/file"; $n = "user.x"; $v = "1"; call(188, $p, $n, $v, 1, 0)`), true},
		{"attribute removed", perl(`$p = "$ENV{OTHER}/file"; $n = "user.y"; $r = syscall(197, $p, $n); die qq($!\n) if $! != 61`), true},
		{"mode of the directory above", `chmod 700 ..`, true},
		{"mode in a share to read", `chmod 600 "$READ/file"`, true},
		{"by a descriptor", perl(read + `chmod(0600, *F) or die qq($!\n)`), true},
		{"times by a descriptor", perl(read + `utime(1, 1, *F) or die qq($!\n)`), true},
		{"attribute by a descriptor", perl(read + `$n = "user.x"; $v = "1"; call(190, fileno F, $n, $v, 1, 0)`), true},
		{"flags by a descriptor", perl(read + `$f = pack("l", 0x80); ioctl(F, 0x40086602, $f) or die qq($!\n)`), false},
		{"by a name of a descriptor", `exec 9<"$READ/file"; chmod 600 /proc/self/fd/9`, true},
		{"by a descriptor of a path", perl(`$p = $ENV{OTHER}; $fd = syscall(257, -100, $p, 010000000, 0); die if $fd < 0; $q = "/proc/self/fd/$fd"; chmod(0700, $q) or die qq($!\n)`), true},
		{"by a working directory", `(cd "$OTHER" && chmod 700 .)`, true},
		{"a symlink", `ln -s "$OTHER/file" link && chmod 600 link`, true},
		{"the shell", `chmod "$(stat -Lc %a /bin/sh)" /bin/sh`, false},
		{"/dev/null", `chmod 666 /proc/self/fd/0`, false},
		{"/dev/null by a descriptor", perl(`chmod(0666, *STDIN) or die`), false},

		{"set-user-ID", `cp /bin/sh sh && chmod 4755 sh`, true},
		{"set-group-ID directory", `mkdir set && chmod 2755 set && test -g set`, true},
		{"set-user-ID from the start", perl(`sysopen(F, "new", O_CREAT | O_WRONLY, 04755); -u "new" or die`), true},
		{"set-user-ID file without a name", perl(`$p = "."; call(257, -100, $p, 020200001, 04755)`), false},
		{"set-user-ID node", perl(`$p = "node"; call(133, $p, 0104755, 0)`), true},
		{"set-user-ID by openat2", perl(`$p = "two"; $h = pack("QQQ", O_CREAT | O_WRONLY, 04755, 0); call(437, -100, $p, $h, 24)`), true},

		{"limits of the daemon", `prlimit --pid $TARGET --nofile=500:500`, true},
		{"limits of its own tree", `prlimit --pid $PPID --core=0:0`, false},
		{"priority of the daemon", `renice -n 5 -p $TARGET`, true},
		{"priority of the user", perl(`setpriority(2, 0, 0) or die`), false},
		{"processors of the daemon", `taskset -p 1 $TARGET`, true},
		{"policy of the daemon", `chrt -b -p 0 $TARGET`, true},
		{"disk priority of the daemon", `ionice -c 3 -p $TARGET`, true},

		{"a user namespace", `unshare -r true`, false},
		{"a mount namespace", `unshare -m true`, false},
		{"the mounts of the daemon", `nsenter -m -t $TARGET true`, false},
		{"a mount", `mount -o remount,rw /`, false},
		{"a bind mount", `mount --bind "$OTHER" .`, false},
		{"unmounting the home", `umount "$HOME" || umount -l "$HOME"`, false},
		{"io_uring", perl(`$p = "\0" x 120; call(425, 4, $p)`), false},
		{"bpf", perl(`$p = "\0" x 120; call(321, 0, $p, 120)`), false},
		{"keys", perl(`call(250, 0, -3, 1)`), false},
		{"shared memory", perl(`shmget(0x62657274, 0, 0) // die`), true},
	}
	shm, _, e := unix.Syscall(unix.SYS_SHMGET, 0x62657274, 4096, 0o666|unix.IPC_CREAT)
	if e == 0 {
		defer unix.Syscall(unix.SYS_SHMCTL, shm, unix.IPC_RMID, 0)
	}
	for _, c := range layersCases() {
		t.Run(c.String(), func(t *testing.T) {
			reach := c.reach(t, newLayersHome(t, c.uid))
			if c.mode != layersAll && reach == filterMounted {
				t.Fatal("it has a mount namespace")
			}
			t.Log("reach", reach)
			target := exec.Command("/bin/sleep", "300")
			target.SysProcAttr = &syscall.SysProcAttr{}
			if os.Geteuid() == 0 {
				target.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(c.uid), Gid: uint32(c.uid)}
			}
			if err := target.Start(); err != nil {
				t.Fatal(err)
			}
			defer target.Wait()
			defer target.Process.Kill()
			for _, e := range escapes {
				if e.name == "shared memory" && reach != filterMounted {
					continue
				}
				for _, inside := range []bool{true, false} {
					if !inside && (!e.control || c.mode != layersAll) {
						continue
					}
					h := newLayersHome(t, c.uid)
					p := h.program("{ "+e.script+"; } 2>&1 && echo reached", fmt.Sprint("TARGET=", target.Process.Pid))
					if !inside {
						p.Sandbox = nil
					}
					before := layersLook(t, h)
					out, log := c.run(t, p)
					if !strings.Contains(log, "exited") || strings.Contains(out, "not found") {
						t.Fatalf("%s: %s\n%s", e.name, log, out)
					}
					reached := strings.Contains(out, "reached")
					if reached == inside {
						t.Errorf("%s, sandbox %v: reached %v\n%s", e.name, inside, reached, out)
					}
					if after := layersLook(t, h); inside && after != before {
						t.Errorf("%s changed something: %s; was %s\n%s", e.name, after, before, out)
					}
				}
			}
		})
	}
}

// layersLook is what the kernel knows of what is not to be changed.
func layersLook(t *testing.T, h layersHome) string {
	t.Helper()
	var look strings.Builder
	for _, path := range []string{h.base, h.read, h.read + "/file", h.other, h.other + "/file", "/dev/null", "/bin/sh"} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		names := make([]byte, 256)
		n, _ := unix.Listxattr(path, names)
		fmt.Fprintf(&look, "%s %o %d:%d %d %q\n", path, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, names[:max(n, 0)])
	}
	return look.String()
}

// What people do in a home works; without a mount namespace, what changes modes and
// times does so as far as the filter can tell it from harm.
func TestLayersLetProgramsWork(t *testing.T) {
	needLandlock(t)
	for _, c := range layersCases() {
		t.Run(c.String(), func(t *testing.T) {
			reach := c.reach(t, newLayersHome(t, c.uid))
			for _, w := range []struct {
				tool, script string
				up           filterReach // the most that it works with
			}{
				{"chmod", `printf '#!/bin/sh\nexit 0\n' >tool && chmod +x tool && ./tool`, filterMounted},
				{"cp", `cp -p /bin/sh copy && ./copy -c true`, filterOpened},
				{"cp", `cp -a file b && test b -ot file -o ! b -nt file`, filterOpened},
				{"touch", `touch new && touch -d 2001-01-01 file && test "$(stat -c %Y file)" -lt 1000000000`, filterOpened},
				{"tar", `mkdir d && echo 1 >d/1 && tar cf d.tar d && rm -r d && tar xf d.tar && test -s d/1`, filterMounted},
				{"mkdir", `mkdir -m 700 m && test "$(stat -c %a m)" = 700`, filterMounted},
				{"ln", `ln -s file s && ln file h && test s -ef h`, filterStrict},
				{"perl", `echo 1 >x.lock && perl -e 'rename q(x.lock), q(x) or die' && test -s x`, filterStrict},
				{"git", `git init -q r && cd r && echo 1 >1 && git add 1 && git -c user.name=a -c user.email=b commit -q -m c && git log --oneline`, filterMounted},
				{"sort", `seq 200000 | sort -S 1M -n -r | head -n 1 | grep -q 200000`, filterStrict},
				{"sh", `sleep 300 & kill $! && ! wait $!`, filterStrict},
				{"nice", `nice -n 5 true && ulimit -n 100 && ulimit -n`, filterStrict},
				{"prlimit", `prlimit --nofile=100:100 true && prlimit --pid $$ >/dev/null`, filterStrict},
				{"taskset", `taskset 1 true`, filterStrict},
				{"top", `TERM=dumb top -b -n1 >top.out && test -s top.out`, filterStrict},
				{"ps", `ps -ef >ps.out && test -s ps.out`, filterStrict},
				{"df", `df -P . | grep -q /`, filterStrict},
				{"sh", `echo x >/dev/null && head -c 1 /dev/zero >/dev/null && cat </dev/null`, filterStrict},
				{"mkfifo", `mkfifo p && { echo x >p & } && read l <p && test "$l" = x`, filterStrict},
				{"perl", `perl -MSocket -e 'socketpair(A, B, AF_UNIX, SOCK_STREAM, 0) or die; socket(S, AF_UNIX, SOCK_STREAM, 0) or die; bind(S, sockaddr_un(q(sock))) or die; listen(S, 1) or die;
					socket(C, AF_UNIX, SOCK_STREAM, 0) or die; connect(C, sockaddr_un(q(sock))) or die $!'`, filterStrict},
			} {
				if _, err := exec.LookPath(w.tool); err != nil || reach > w.up {
					continue
				}
				h := newLayersHome(t, c.uid)
				p := h.program("exec 2>&1; set -e; " + w.script)
				if reach < filterStrict {
					p.Sandbox.Read = nil
				}
				out, log := c.run(t, p)
				if !strings.Contains(log, "exited exit 0") {
					t.Errorf("%s\n%s: %s", w.script, log, out)
				}
			}
		})
	}
}

func TestLayersOnTerminal(t *testing.T) {
	needLandlock(t)
	for _, c := range layersCases() {
		if c.mode != layersAll {
			continue
		}
		p := newLayersHome(t, c.uid).program(`tty && stty -echo raw && stty sane && echo x >/dev/tty && echo y >"$(tty)" && ! chmod 600 "$(tty)" && ! perl -e 'chmod(0600, *STDIN) or exit 1'`)
		p.TTY = &terminalSize{Rows: 24, Cols: 80}
		if out, log := c.run(t, p); !strings.Contains(log, "exited exit 0") || !strings.Contains(out, "x\r\ny\r\n") {
			t.Errorf("%v: %s\n%s", c, log, out)
		}
	}
}

// A berth that could not have a mount namespace says so once, and does not try again
// for each command.
func TestMountGate(t *testing.T) {
	needLandlock(t)
	var log bytes.Buffer
	l := newLauncher(slog.New(slog.NewTextHandler(&log, nil)), false)
	l.gate.owner = false
	tries := 0
	l.fork = func(attr *os.ProcAttr) (*os.Process, error) {
		if attr.Sys.Cloneflags != 0 {
			tries++
			return nil, unix.EPERM
		}
		return startHelper(attr)
	}
	p := boxed(newShProgram(t, "true", io.Discard))
	for range 3 {
		if r := l.run(t.Context(), p.program, p.io); !r.ok() {
			t.Fatalf("%+v", r)
		}
	}
	l.gate.shut = time.Time{}
	l.run(t.Context(), p.program, p.io)
	if said := strings.Count(log.String(), "fewer layers"); tries != 2 || said != 1 || !strings.Contains(log.String(), "mount namespace: user namespace: operation not permitted") {
		t.Errorf("%d tries, said %d times:\n%s", tries, said, &log)
	}
	// Nor is anything tried for what has no sandbox.
	l.gate.shut, p.Sandbox = time.Time{}, nil
	if r := l.run(t.Context(), p.program, p.io); !r.ok() || tries != 2 {
		t.Errorf("%+v, %d tries", r, tries)
	}
}

// Mounts, what is in another directory, and what is a symlink are all writable; and
// nothing of it shows outside.
func TestLayersMounts(t *testing.T) {
	needLandlock(t)
	for _, c := range layersCases() {
		h := newLayersHome(t, c.uid)
		if err := os.Symlink(h.other, h.base+"/link"); err != nil {
			t.Fatal(err)
		}
		before, _ := os.ReadFile("/proc/self/mounts")
		p := h.program(`echo 1 >"$OTHER/1" && echo 2 >2 && mkdir -p sub/d && echo 3 >sub/3 && cat "$READ/file" && ! echo 4 >"$READ/4"`)
		p.Sandbox.Write = rawTexts([]string{h.home + "/sub", h.base + "/link", h.home, "/nowhere/at/all", "/dev/null"})
		os.Mkdir(h.home+"/sub", 0o755)
		os.Chown(h.home+"/sub", c.uid, c.uid)
		out, log := c.run(t, p)
		after, _ := os.ReadFile("/proc/self/mounts")
		if !strings.Contains(log, "exited exit 0") || !bytes.Equal(before, after) {
			t.Errorf("%v: %s\n%s", c, log, out)
		}
	}
	p := newLayersHome(t, os.Geteuid()).program(`true`)
	p.Sandbox.Write = append(p.Sandbox.Write, "/")
	if _, log := (layersCase{os.Geteuid(), layersAll}).run(t, p); !strings.Contains(log, "exited exit 0") {
		t.Error(log)
	}
}
