// seccomp.go is the filter of system calls that a sandboxed program runs under. It
// stands beside Landlock, which watches what is opened and nothing else: it refuses
// what would reach a process or a file without opening it, as chmod(2), prlimit(2)
// and io_uring do, and what a program has no use for within a sandbox, as mounts.
//
// It is a program of classic BPF, put together here for the processor at hand. It
// knows no paths: who may touch which is in sandbox.go.

package main

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A filterReach is how much of a sandbox others see to, and what is left to the filter.
type filterReach int

const (
	// filterMounted: outside of what may be written all is mounted read-only.
	filterMounted filterReach = iota

	// filterOpened: it is not, and calls that change a file's mode, owner, times or
	// attributes by its name are denied, wherever the file is. Landlock decides what can
	// be opened, so what goes by a descriptor stays.
	filterOpened

	// filterStrict: these are denied, too, since the program may open for reading what
	// belongs to its user id and is not its own.
	filterStrict
)

// Values that x/sys does not have.
const (
	ioprioWhoUser = 3 // linux/ioprio.h

	// The numbers of x32 begin here; nothing uses that, and most kernels do not have it.
	filterX32 = 0x40000000

	// ioctl(2) of linux/fs.h, which change a file by a descriptor for reading.
	ioctlSetFlags64   = 0x40086602 // FS_IOC_SETFLAGS
	ioctlSetFlags32   = 0x40046602
	ioctlSetVersion64 = 0x40087602
	ioctlSetVersion32 = 0x40047602
	ioctlSetXattr     = 0x401c5820 // FS_IOC_FSSETXATTR
	ioctlMIPS         = 0xc0000000 // MIPS has other bits for the direction (asm/ioctl.h)

	filterSetID  = unix.S_ISUID | unix.S_ISGID
	filterCreate = unix.O_CREAT | unix.O_TMPFILE&^unix.O_DIRECTORY // calls to open that have a mode

	// Every namespace that unshare(2) and clone(2) can make; in another user namespace a
	// program has all capabilities again.
	filterNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC |
		unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
)

// --- what is denied ---

// A filterTest looks at one argument of a system call, all of it or its lower 32 bits.
type filterTest struct {
	arg   int
	op    filterOp
	value uint32
}

type filterOp int

const (
	testNonzero filterOp = iota // a pointer: 64 bits
	testInt                     // an int other than 0
	testBits                    // any of the bits of value
	testEquals
)

// A filterRule denies a call if all tests hold.
type filterRule struct {
	call  string
	errno unix.Errno
	tests []filterTest
}

// filterRules is all that a program is denied.
func filterRules(reach filterReach) (rules []filterRule) {
	deny := func(errno unix.Errno, calls ...string) {
		for _, call := range calls {
			rules = append(rules, filterRule{call: call, errno: errno})
		}
	}
	denyIf := func(call string, tests ...filterTest) {
		rules = append(rules, filterRule{call, unix.EPERM, tests})
	}

	// What is in memory no filter sees: libraries go on with the older calls.
	deny(unix.ENOSYS, "clone3", "openat2")

	// Any call by another's number: MIPS has that, and no library uses it.
	deny(unix.ENOSYS, "syscall")

	deny(unix.EPERM, "mount", "umount", "umount2", "pivot_root", "fsopen", "fsconfig", "fsmount", "fspick", "move_mount", "open_tree",
		"open_tree_attr", "mount_setattr", "setns", "open_by_handle_at")
	for _, call := range []string{"unshare", "clone"} {
		denyIf(call, filterTest{0, testBits, filterNamespaces})
	}

	// Large parts of the kernel that no command needs, and io_uring, which does what
	// the calls here do, but is not seen.
	deny(unix.EPERM, "bpf", "keyctl", "add_key", "request_key", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter",
		"io_uring_register", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module")

	// Other processes of the user id, berth among them. 0 is the caller.
	denyIf("prlimit64", filterTest{0, testInt, 0}, filterTest{2, testNonzero, 0})
	for _, call := range []string{"sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr"} {
		denyIf(call, filterTest{0, testInt, 0})
	}
	for call, user := range map[string]uint32{"setpriority": unix.PRIO_USER, "ioprio_set": ioprioWhoUser} {
		denyIf(call, filterTest{1, testInt, 0})
		denyIf(call, filterTest{0, testEquals, user}) // all processes of the caller's user
	}

	// What is typed for others: into the terminal, or out of the console's selection.
	denyIf("ioctl", filterTest{1, testEquals, unix.TIOCSTI})
	denyIf("ioctl", filterTest{1, testEquals, unix.TIOCLINUX})

	// Set-user-ID programs work for everybody on the machine, not just here.
	for call, arg := range map[string]int{"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "creat": 1,
		"mkdir": 1, "mkdirat": 2, "mknod": 1, "mknodat": 2} {
		denyIf(call, filterTest{arg, testBits, filterSetID})
	}
	for call, flags := range map[string]int{"open": 1, "openat": 2} {
		denyIf(call, filterTest{flags, testBits, filterCreate}, filterTest{flags + 1, testBits, filterSetID})
	}

	if reach >= filterOpened {
		deny(unix.EPERM, "chmod", "fchmodat", "fchmodat2", "chown", "chown32", "lchown", "lchown32", "fchownat", "utime", "utimes",
			"setxattr", "lsetxattr", "setxattrat", "removexattr", "lremovexattr", "removexattrat", "file_setattr")
		for _, call := range []string{"futimesat", "utimensat", "utimensat_time64"} {
			denyIf(call, filterTest{1, testNonzero, 0}) // without a path it is of the descriptor
		}
	}
	if reach >= filterStrict {
		deny(unix.EPERM, "fchmod", "fchown", "fchown32", "futimesat", "utimensat", "utimensat_time64", "fsetxattr", "fremovexattr")
		for _, request := range []uint32{ioctlSetFlags64, ioctlSetFlags32, ioctlSetVersion64, ioctlSetVersion32, ioctlSetXattr} {
			denyIf("ioctl", filterTest{1, testEquals, request})
			denyIf("ioctl", filterTest{1, testEquals, request ^ ioctlMIPS})
		}
	}
	return rules
}

// --- the program of the filter ---

// A filterArch is a set of system calls that a kernel may have.
type filterArch struct {
	audit  uint32 // AUDIT_ARCH_…
	column int    // of filterCalls
}

// filterArches is what programs may be for on a kernel that runs this berth: a
// 64-bit kernel runs those for 32 bits, and berth may be such a one itself. All
// are little-endian.
func filterArches(goarch string) []filterArch {
	amd64, i386 := filterArch{unix.AUDIT_ARCH_X86_64, 0}, filterArch{unix.AUDIT_ARCH_I386, 1}
	arm64, arm := filterArch{unix.AUDIT_ARCH_AARCH64, 2}, filterArch{unix.AUDIT_ARCH_ARM, 3}
	switch goarch {
	case "amd64", "386":
		return []filterArch{amd64, i386}
	case "arm64", "arm":
		return []filterArch{arm64, arm}
	case "riscv64":
		return []filterArch{{unix.AUDIT_ARCH_RISCV64, 4}}
	case "mipsle":
		return []filterArch{{unix.AUDIT_ARCH_MIPSEL, 5}}
	}
	return nil
}

// Offsets in struct seccomp_data (seccomp(2)).
const (
	filterNumber = 0
	filterAudit  = 4
	filterArgs   = 16 // of 8 bytes each
)

// seccompFilter is nil for a processor that berth does not know.
func seccompFilter(goarch string, reach filterReach) (prog []unix.SockFilter) {
	arches := filterArches(goarch)
	if arches == nil {
		return nil
	}
	rules := filterRules(reach)
	prog = append(prog, filterLoad(filterAudit))
	for _, a := range arches {
		section := a.section(rules)
		prog = append(prog, filterJump(unix.BPF_JEQ, a.audit, 1, 0),
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(section))}) // further than a test can jump
		prog = append(prog, section...)
	}
	return append(prog, filterDeny(unix.ENOSYS))
}

// section decides every call of one architecture.
func (a filterArch) section(rules []filterRule) []unix.SockFilter {
	prog := []unix.SockFilter{filterLoad(filterNumber)}
	if a.audit == unix.AUDIT_ARCH_X86_64 {
		prog = append(prog, filterJump(unix.BPF_JGE, filterX32, 0, 1), filterDeny(unix.ENOSYS))
	}
	for _, r := range rules {
		call := filterCalls[r.call][a.column]
		if call == 0 {
			continue
		}
		var body []unix.SockFilter
		for _, t := range r.tests {
			body = append(body, t.code()...)
		}
		body = append(body, filterDeny(r.errno))
		for i, op := range body {
			if op.Jf == filterMiss {
				body[i].Jf = uint8(len(body) - 1 - i)
			}
		}
		if len(r.tests) > 0 {
			// Whatever the tests have loaded, the next rule looks at the number.
			body = append(body, filterLoad(filterNumber))
			prog = append(prog, filterJump(unix.BPF_JEQ, call, 0, uint8(len(body))))
		} else {
			prog = append(prog, filterJump(unix.BPF_JEQ, call, 0, 1))
		}
		prog = append(prog, body...)
	}
	return append(prog, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
}

// filterMiss stands for a jump out of the rule, which is short.
const filterMiss = 0xff

// code goes on if the test holds and jumps by filterMiss if not.
func (t filterTest) code() []unix.SockFilter {
	low := filterArgs + 8*uint32(t.arg)
	switch t.op {
	case testNonzero:
		return []unix.SockFilter{
			filterLoad(low), filterJump(unix.BPF_JGT, 0, 2, 0),
			filterLoad(low + 4), filterJump(unix.BPF_JGT, 0, 0, filterMiss),
		}
	case testInt:
		return []unix.SockFilter{filterLoad(low), filterJump(unix.BPF_JGT, 0, 0, filterMiss)}
	case testBits:
		return []unix.SockFilter{filterLoad(low), filterJump(unix.BPF_JSET, t.value, 0, filterMiss)}
	}
	return []unix.SockFilter{filterLoad(low), filterJump(unix.BPF_JEQ, t.value, 0, filterMiss)}
}

func filterLoad(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func filterJump(op uint16, k uint32, hit, miss uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: hit, Jf: miss}
}

func filterDeny(errno unix.Errno) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)}
}

var errNoFilter = errors.New("no filter of system calls")

// setFilter puts the calling thread, and what it becomes, under the filter. It
// needs no_new_privs. errNoFilter: this kernel has none, or berth none for it.
func setFilter(reach filterReach) error {
	prog := seccompFilter(runtime.GOARCH, reach)
	if prog == nil {
		return errorf("%w for %s", errNoFilter, runtime.GOARCH)
	}
	p := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	// Without the flag (Linux 4.17), kernels before 5.16 slow programs down to shield
	// them from themselves.
	var e unix.Errno
	for _, flags := range []uintptr{unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, 0} {
		if _, _, e = unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&p))); e != unix.EINVAL {
			break
		}
	}
	runtime.KeepAlive(prog)
	switch e {
	case 0:
		return nil
	case unix.ENOSYS, unix.EINVAL:
		return errorf("%w: %w", errNoFilter, e)
	}
	return errorf("seccomp: %w", e)
}

// filterCalls is the numbers of system calls, by the columns of filterArches; 0:
// there is none. They never change.
var filterCalls = map[string][6]uint32{
	//                   amd64, 386, arm64, arm, riscv64, mipsle
	"chmod":            {90, 15, 0, 15, 0, 4015},
	"fchmod":           {91, 94, 52, 94, 52, 4094},
	"fchmodat":         {268, 306, 53, 333, 53, 4299},
	"fchmodat2":        {452, 452, 452, 452, 452, 4452},
	"chown":            {92, 182, 0, 182, 0, 4202},
	"chown32":          {0, 212, 0, 212, 0, 0},
	"lchown":           {94, 16, 0, 16, 0, 4016},
	"lchown32":         {0, 198, 0, 198, 0, 0},
	"fchown":           {93, 95, 55, 95, 55, 4095},
	"fchown32":         {0, 207, 0, 207, 0, 0},
	"fchownat":         {260, 298, 54, 325, 54, 4291},
	"utime":            {132, 30, 0, 0, 0, 4030},
	"utimes":           {235, 271, 0, 269, 0, 4267},
	"futimesat":        {261, 299, 0, 326, 0, 4292},
	"utimensat":        {280, 320, 88, 348, 88, 4316},
	"utimensat_time64": {0, 412, 0, 412, 0, 4412},
	"setxattr":         {188, 226, 5, 226, 5, 4224},
	"lsetxattr":        {189, 227, 6, 227, 6, 4225},
	"fsetxattr":        {190, 228, 7, 228, 7, 4226},
	"setxattrat":       {463, 463, 463, 463, 463, 4463},
	"removexattr":      {197, 235, 14, 235, 14, 4233},
	"lremovexattr":     {198, 236, 15, 236, 15, 4234},
	"fremovexattr":     {199, 237, 16, 237, 16, 4235},
	"removexattrat":    {466, 466, 466, 466, 466, 4466},
	"file_setattr":     {469, 469, 469, 469, 469, 4469},

	"creat":   {85, 8, 0, 8, 0, 4008},
	"open":    {2, 5, 0, 5, 0, 4005},
	"openat":  {257, 295, 56, 322, 56, 4288},
	"openat2": {437, 437, 437, 437, 437, 4437},
	"mkdir":   {83, 39, 0, 39, 0, 4039},
	"mkdirat": {258, 296, 34, 323, 34, 4289},
	"mknod":   {133, 14, 0, 14, 0, 4014},
	"mknodat": {259, 297, 33, 324, 33, 4290},
	"ioctl":   {16, 54, 29, 54, 29, 4054},

	"prlimit64":          {302, 340, 261, 369, 261, 4338},
	"setpriority":        {141, 97, 140, 97, 140, 4097},
	"ioprio_set":         {251, 289, 30, 314, 30, 4314},
	"sched_setaffinity":  {203, 241, 122, 241, 122, 4239},
	"sched_setscheduler": {144, 156, 119, 156, 119, 4160},
	"sched_setparam":     {142, 154, 118, 154, 118, 4158},
	"sched_setattr":      {314, 351, 274, 380, 274, 4349},

	"mount":             {165, 21, 40, 21, 40, 4021},
	"umount":            {0, 22, 0, 0, 0, 4022},
	"umount2":           {166, 52, 39, 52, 39, 4052},
	"pivot_root":        {155, 217, 41, 218, 41, 4216},
	"fsopen":            {430, 430, 430, 430, 430, 4430},
	"fsconfig":          {431, 431, 431, 431, 431, 4431},
	"fsmount":           {432, 432, 432, 432, 432, 4432},
	"fspick":            {433, 433, 433, 433, 433, 4433},
	"move_mount":        {429, 429, 429, 429, 429, 4429},
	"open_tree":         {428, 428, 428, 428, 428, 4428},
	"open_tree_attr":    {467, 467, 467, 467, 467, 4467},
	"mount_setattr":     {442, 442, 442, 442, 442, 4442},
	"open_by_handle_at": {304, 342, 265, 371, 265, 4340},
	"unshare":           {272, 310, 97, 337, 97, 4303},
	"clone":             {56, 120, 220, 120, 220, 4120},
	"syscall":           {0, 0, 0, 0, 0, 4000},
	"clone3":            {435, 435, 435, 435, 435, 4435},
	"setns":             {308, 346, 268, 375, 268, 4344},

	"bpf":               {321, 357, 280, 386, 280, 4355},
	"keyctl":            {250, 288, 219, 311, 219, 4282},
	"add_key":           {248, 286, 217, 309, 217, 4280},
	"request_key":       {249, 287, 218, 310, 218, 4281},
	"perf_event_open":   {298, 336, 241, 364, 241, 4333},
	"userfaultfd":       {323, 374, 282, 388, 282, 4357},
	"io_uring_setup":    {425, 425, 425, 425, 425, 4425},
	"io_uring_enter":    {426, 426, 426, 426, 426, 4426},
	"io_uring_register": {427, 427, 427, 427, 427, 4427},
	"kexec_load":        {246, 283, 104, 347, 104, 4311},
	"kexec_file_load":   {320, 0, 294, 401, 294, 0},
	"init_module":       {175, 128, 105, 128, 105, 4128},
	"finit_module":      {313, 350, 273, 379, 273, 4348},
	"delete_module":     {176, 129, 106, 129, 106, 4129},
}
