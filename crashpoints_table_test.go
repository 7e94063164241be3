package main

// What crashpoints_test.go proves, as data: operation x step -> what is there after a
// crash in front of the step, and operation x failing call -> the reply and what is
// there. It is apart because it is read for another question: not how a server is cut
// between two system calls, but what its user has then. A row here is a promise of
// contract section 5, and changes with the contract; that it is kept is for the other
// file to find out.

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

const (
	stepsPart  = 1000       // bytes of the older try that some operations find
	stepsBlock = copyBuffer // what an upload writes before it goes over to splice
	stepsSize  = stepsBlock + 40_000
)

// A stepsRow is one step: CALL ROLE, a reply's code where the client is told something,
// or FROM>TO as the role of a rename. left is what the directory holds when the server
// died before it and the next one has recovered: see stepsWorld.look.
type stepsRow struct{ step, left string }

// A stepsOp is one operation, on the name "x" of a directory of its own.
type stepsOp struct {
	name     string
	fast     bool     // durable = false
	old      []byte   // the complete file that has the name
	aside    int      // bytes kept aside of an older try
	part     int      // bytes of one under its own name
	also     []byte   // another complete file, "y"
	sub      bool     // an empty directory "sub"
	before   []string // commands that lead up to it, answered 350, 200 or 250
	command  string   // "" is the end of the server, in order
	data     []byte   // what is sent; nil: no data connection
	want     []byte   // x in the end, or as it would be if all of it had arrived
	steps    []stepsRow
	failures []stepsFailure // not all that there are, but each call and each reply
}

// A stepsFailure is a call that fails, a step or one that changes nothing, the reply that
// the client has for it and what the directory holds then.
type stepsFailure struct {
	step  string
	errno string // as strace has it: each call fails, or with ":when=1" the first
	code  string
	left  string
}

// stepsText is n bytes that differ everywhere.
func stepsText(seed string, n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%s%08d ", seed, i)
	}
	return b.Bytes()[:n]
}

// stepsOps is the table: operation x step -> what is there.
func stepsOps() []stepsOp {
	old, new := stepsText("old", 5000), stepsText("new", stepsSize)
	const kept = 3000 // of the old file, by REST into it
	return []stepsOp{
		{name: "STOR, a new name", command: "STOR x", data: new, want: new, steps: []stepsRow{
			{"openat stage", ""},
			{"flock stage", ""},
			{"150", ""},
			{"write stage", ""},
			{"splice stage", "x partial 262144"},
			{"fdatasync stage", "x partial 302144"},
			{"renameat stage>x", "x partial 302144"},
			{"fsync dir", "x new"},
			{"226", "x new"},
		}, failures: []stepsFailure{
			{"openat stage", "EIO", "451", ""},
			{"openat stage", "ENOSPC", "452", ""},
			{"openat stage", "EDQUOT", "552", ""},
			{"write stage", "EIO", "451", ""},
			{"write stage", "ENOSPC", "452", ""},
			{"write stage", "EDQUOT", "552", ""},
			{"splice stage", "EIO", "451", "x partial 262144"},
			{"splice stage", "ENOSPC", "452", ""},
			{"splice stage", "EDQUOT", "552", ""},
			{"fdatasync stage", "EIO", "451", ""},
			{"fdatasync stage", "ENOSPC", "452", ""},
			{"fdatasync stage", "EDQUOT", "552", ""},
			{"renameat stage>x", "EIO", "451", ""},
			{"renameat stage>x", "ENOSPC", "452", ""},
			{"renameat stage>x", "EDQUOT", "552", ""},
			{"fsync dir", "EIO", "451", "x new"},
			{"openat stage", "EROFS", "551", ""},
			{"renameat stage>x", "EROFS", "551", ""},
			{"pread64 x", "EIO", "451", "x new"}, // an xfs that has shut itself down
		}},
		{name: "STOR, a new name, not durable", fast: true, command: "STOR x", data: new, want: new, steps: []stepsRow{
			{"openat stage", ""},
			{"flock stage", ""},
			{"150", ""},
			{"write stage", ""},
			{"splice stage", "x partial 262144"},
			{"renameat stage>x", "x partial 302144"},
			{"226", "x new"},
		}},
		{name: "STOR over a file", old: old, command: "STOR x", data: new, want: new, steps: []stepsRow{
			{"openat stage", "x old"},
			{"flock stage", "x old"},
			{"fchmod stage", "x old"},
			{"150", "x old"},
			{"write stage", "x old"},
			{"splice stage", "x old, aside 262144"},
			{"fdatasync stage", "x old, aside 302144"},
			{"renameat stage>x", "x old, aside 302144"},
			{"fsync dir", "x new"},
			{"226", "x new"},
		}, failures: []stepsFailure{
			{"openat stage", "EIO", "451", "x old"},
			{"openat stage", "ENOSPC", "452", "x old"},
			{"openat stage", "EDQUOT", "552", "x old"},
			{"fchmod stage", "EIO", "451", "x old"},
			{"write stage", "EIO", "451", "x old"},
			{"write stage", "ENOSPC", "452", "x old"},
			{"write stage", "EDQUOT", "552", "x old"},
			{"splice stage", "EIO", "451", "x old, aside 262144"},
			{"splice stage", "ENOSPC", "452", "x old"},
			{"splice stage", "EDQUOT", "552", "x old"},
			{"fdatasync stage", "EIO", "451", "x old"},
			{"fdatasync stage", "ENOSPC", "452", "x old"},
			{"fdatasync stage", "EDQUOT", "552", "x old"},
			{"renameat stage>x", "EIO", "451", "x old"},
			{"renameat stage>x", "ENOSPC", "452", "x old"},
			{"renameat stage>x", "EDQUOT", "552", "x old"},
			{"fsync dir", "EIO", "451", "x new"},
			{"openat stage", "EROFS", "551", "x old"},
			{"renameat stage>x", "EROFS", "551", "x old"},
			{"pread64 x", "EIO", "451", "x new"},
		}},
		{name: "STOR over a file, not durable", fast: true, old: old, command: "STOR x", data: new, want: new, steps: []stepsRow{
			{"openat stage", "x old"},
			{"flock stage", "x old"},
			{"fchmod stage", "x old"},
			{"150", "x old"},
			{"write stage", "x old"},
			{"splice stage", "x old, aside 262144"},
			{"renameat stage>x", "x old, aside 302144"},
			{"226", "x new"},
		}},
		{name: "STOR over a file with a partial aside", old: old, aside: stepsPart, command: "STOR x", data: new, want: new, steps: []stepsRow{
			{"openat stage", "x old, aside 1000"},
			{"flock stage", "x old, aside 1000"},
			{"fchmod stage", "x old, aside 1000"},
			{"150", "x old, aside 1000"},
			{"write stage", "x old, aside 1000"},
			{"splice stage", "x old, aside 262144"},
			{"fdatasync stage", "x old, aside 302144"},
			{"renameat aside>lifted", "x old, aside 302144"},
			{"renameat stage>x", "x old, aside 302144"},
			{"unlinkat lifted", "x new"},
			{"fsync dir", "x new"},
			{"226", "x new"},
		}, failures: []stepsFailure{
			{"fdatasync stage", "EIO", "451", "x old, aside 1000"},
			{"renameat stage>x", "EIO", "451", "x old, aside 1000"},
			{"renameat stage>x", "ENOSPC", "452", "x old, aside 1000"},
			{"renameat stage>x", "EDQUOT", "552", "x old, aside 1000"},
			{"splice stage", "ENOSPC", "452", "x old, aside 1000"},
		}},
		{name: "STOR over a partial of that name", part: stepsPart, command: "STOR x", data: new, want: new, steps: []stepsRow{
			{"openat stage", "x partial 1000"},
			{"flock stage", "x partial 1000"},
			{"fchmod stage", "x partial 1000"},
			{"150", "x partial 1000"},
			{"write stage", "x partial 1000"},
			{"splice stage", "x partial 262144"},
			{"fdatasync stage", "x partial 302144"},
			{"renameat stage>x", "x partial 302144"},
			{"fsync dir", "x new"},
			{"226", "x new"},
		}},
		{name: "REST + STOR on a partial of that name", part: stepsPart, before: []string{"REST 1000"}, command: "STOR x", data: new[stepsPart:], want: new, steps: []stepsRow{
			{"flock x", "x partial 1000"},
			{"renameat2 x>stage", "x partial 1000"},
			{"150", "x partial 1000"},
			{"write stage", "x partial 1000"},
			{"splice stage", "x partial 263144"},
			{"fremovexattr stage", "x partial 302144"},
			{"fdatasync stage", "x partial 302144"},
			{"renameat stage>x", "x partial 302144"},
			{"fsync dir", "x new"},
			{"226", "x new"},
		}, failures: []stepsFailure{
			{"renameat2 x>stage", "EIO", "451", "x partial 1000"},
			{"renameat2 x>stage", "ENOSPC", "452", "x partial 1000"},
			{"write stage", "EIO", "451", "x partial 1000"},
			{"write stage", "ENOSPC", "452", "x partial 1000"},
			{"splice stage", "EDQUOT", "552", "x partial 1000"},
			{"fdatasync stage", "EIO", "451", ""}, // nobody knows what the disk has of it
			{"fdatasync stage", "ENOSPC", "452", "x partial 1000"},
			{"renameat stage>x", "EIO:when=1", "451", "x partial 302144"},
			{"renameat stage>x", "EDQUOT:when=1", "552", "x partial 1000"},
			{"fsync dir", "EIO", "451", "x new"},
		}},
		{name: "REST + STOR on a partial aside", old: old, aside: stepsPart, before: []string{"REST 1000"}, command: "STOR x", data: new[stepsPart:], want: new, steps: []stepsRow{
			{"flock aside", "x old, aside 1000"},
			{"renameat2 aside>stage", "x old, aside 1000"},
			{"150", "x old, aside 1000"},
			{"write stage", "x old, aside 1000"},
			{"splice stage", "x old, aside 263144"},
			{"fremovexattr stage", "x old, aside 302144"},
			{"fdatasync stage", "x old, aside 302144"},
			{"renameat stage>x", "x old, aside 302144"},
			{"fsync dir", "x new"},
			{"226", "x new"},
		}, failures: []stepsFailure{
			{"renameat2 aside>stage", "EIO", "451", "x old, aside 1000"},
			{"write stage", "EIO", "451", "x old, aside 1000"},
			{"write stage", "EDQUOT", "552", "x old, aside 1000"},
			{"splice stage", "ENOSPC", "452", "x old, aside 1000"},
			{"fdatasync stage", "EIO", "451", "x old"},
			{"fdatasync stage", "EDQUOT", "552", "x old, aside 1000"},
			{"renameat stage>x", "EIO:when=1", "451", "x old, aside 302144"},
			{"renameat stage>x", "ENOSPC:when=1", "452", "x old, aside 1000"},
			{"fsync dir", "EIO", "451", "x new"},
		}},
		// Nobody could tell the copy of the old file from what was sent, so a crash
		// leaves nothing to continue, and no part that is all copy: contract section 5
		// promises the old content. The same goes for APPE.
		{name: "REST + STOR into a complete file", old: old, before: []string{fmt.Sprint("REST ", kept)}, command: "STOR x", data: new, want: slices.Concat(old[:kept], new), steps: []stepsRow{
			{"openat stage", "x old"},
			{"flock stage", "x old"},
			{"fchmod stage", "x old"},
			{"150", "x old"},
			{"copy_file_range stage", "x old"},
			{"write stage", "x old"},
			{"splice stage", "x old"},
			{"fdatasync stage", "x old"},
			{"renameat stage>x", "x old"},
			{"fsync dir", "x new"},
			{"226", "x new"},
		}, failures: []stepsFailure{
			{"openat stage", "EDQUOT", "552", "x old"},
			{"copy_file_range stage", "EIO", "226", "x new"}, // the runtime then copies by hand
			{"copy_file_range stage", "ENOSPC", "452", "x old"},
			{"write stage", "EIO", "451", "x old"},
			{"splice stage", "ENOSPC", "452", "x old"},
			{"fdatasync stage", "EIO", "451", "x old"},
			{"renameat stage>x", "EDQUOT", "552", "x old"},
			{"openat stage", "EROFS", "551", "x old"},
			{"pread64 x", "EIO", "451", "x new"},
		}},
		{name: "APPE to a complete file", old: old, command: "APPE x", data: new, want: slices.Concat(old, new), steps: []stepsRow{
			{"openat stage", "x old"},
			{"flock stage", "x old"},
			{"fchmod stage", "x old"},
			{"150", "x old"},
			{"copy_file_range stage", "x old"},
			{"write stage", "x old"},
			{"splice stage", "x old"},
			{"fdatasync stage", "x old"},
			{"renameat stage>x", "x old"},
			{"fsync dir", "x new"},
			{"226", "x new"},
		}, failures: []stepsFailure{
			{"openat stage", "EIO", "451", "x old"},
			{"copy_file_range stage", "EDQUOT", "552", "x old"},
			{"write stage", "ENOSPC", "452", "x old"},
			{"splice stage", "EIO", "451", "x old"},
			{"fdatasync stage", "EIO", "451", "x old"},
			{"renameat stage>x", "ENOSPC", "452", "x old"},
			{"fsync dir", "EIO", "451", "x new"},
			{"openat stage", "EROFS", "551", "x old"},
			{"pread64 x", "EIO", "451", "x new"},
		}},
		{name: "APPE to an empty file", old: []byte{}, command: "APPE x", data: new, want: new, steps: []stepsRow{
			{"openat stage", "x old"},
			{"flock stage", "x old"},
			{"fchmod stage", "x old"},
			{"150", "x old"},
			{"write stage", "x old"},
			{"splice stage", "x old"},
			{"fdatasync stage", "x old"},
			{"renameat stage>x", "x old"},
			{"fsync dir", "x new"},
			{"226", "x new"},
		}},
		{name: "APPE, a new name", command: "APPE x", data: new, want: new, steps: []stepsRow{
			{"openat stage", ""},
			{"flock stage", ""},
			{"150", ""},
			{"write stage", ""},
			{"splice stage", "x partial 262144"},
			{"fdatasync stage", "x partial 302144"},
			{"renameat stage>x", "x partial 302144"},
			{"fsync dir", "x new"},
			{"226", "x new"},
		}, failures: []stepsFailure{
			{"openat stage", "EROFS", "551", ""},
			{"renameat stage>x", "EROFS", "551", ""},
		}},
		{name: "APPE to a partial", part: stepsPart, command: "APPE x", data: new[stepsPart:], want: new, steps: []stepsRow{
			{"flock x", "x partial 1000"},
			{"renameat2 x>stage", "x partial 1000"},
			{"150", "x partial 1000"},
			{"write stage", "x partial 1000"},
			{"splice stage", "x partial 263144"},
			{"fremovexattr stage", "x partial 302144"},
			{"fdatasync stage", "x partial 302144"},
			{"renameat stage>x", "x partial 302144"},
			{"fsync dir", "x new"},
			{"226", "x new"},
		}},
		{name: "STOU", command: "STOU x", data: new, want: new, steps: []stepsRow{
			{"openat stage", ""},
			{"flock stage", ""},
			{"150", ""},
			{"write stage", ""},
			{"splice stage", "x partial 262144"},
			{"fdatasync stage", "x partial 302144"},
			{"renameat2 stage>x", "x partial 302144"},
			{"fsync dir", "x new"},
			{"226", "x new"},
		}, failures: []stepsFailure{
			{"openat stage", "EIO", "451", ""},
			{"renameat2 stage>x", "EDQUOT", "552", ""},
			{"splice stage", "ENOSPC", "452", ""},
			{"openat stage", "EROFS", "551", ""},
		}},
		{name: "STOR, a new name, cut off", before: []string{"ALLO 1000000"}, command: "STOR x", data: new, want: new, steps: []stepsRow{
			{"openat stage", ""},
			{"flock stage", ""},
			{"150", ""},
			{"write stage", ""},
			{"splice stage", "x partial 262144"},
			{"fsetxattr stage", "x partial 302144"},
			{"fdatasync stage", "x partial 302144"},
			{"renameat stage>x", "x partial 302144"},
			{"fsync dir", "x partial 302144"},
			{"426", "x partial 302144"},
		}, failures: []stepsFailure{
			{"renameat stage>x", "EIO", "426", ""},
			{"fsync dir", "EIO", "426", "x partial 302144"},
		}},
		{name: "STOR over a file, cut off", old: old, aside: stepsPart, before: []string{"ALLO 1000000"}, command: "STOR x", data: new, want: new, steps: []stepsRow{
			{"openat stage", "x old, aside 1000"},
			{"flock stage", "x old, aside 1000"},
			{"fchmod stage", "x old, aside 1000"},
			{"150", "x old, aside 1000"},
			{"write stage", "x old, aside 1000"},
			{"splice stage", "x old, aside 262144"},
			{"fsetxattr stage", "x old, aside 302144"},
			{"fdatasync stage", "x old, aside 302144"},
			{"renameat stage>aside", "x old, aside 302144"},
			{"fsync dir", "x old, aside 302144"},
			{"426", "x old, aside 302144"},
		}, failures: []stepsFailure{
			{"renameat stage>aside", "EIO", "426", "x old, aside 1000"},
		}},
		{name: "STOR, cut off, with a partial aside of a file renamed away", old: old, aside: stepsPart, before: []string{"RNFR x", "RNTO y", "ALLO 1000000"}, command: "STOR x", data: new, want: new, steps: []stepsRow{
			{"openat stage", "y old, aside 1000"},
			{"flock stage", "y old, aside 1000"},
			{"150", "y old, aside 1000"},
			{"write stage", "y old, aside 1000"},
			{"splice stage", "x partial 262144, y old"},
			{"fsetxattr stage", "x partial 302144, y old"},
			{"fdatasync stage", "x partial 302144, y old"},
			{"renameat aside>lifted", "x partial 302144, y old"},
			{"renameat stage>x", "x partial 302144, y old"},
			{"unlinkat lifted", "x partial 302144, y old"},
			{"fsync dir", "x partial 302144, y old"},
			{"426", "x partial 302144, y old"},
		}, failures: []stepsFailure{
			{"renameat stage>x", "EIO", "426", "y old, aside 1000"},
			{"fsync dir", "EIO", "426", "x partial 302144, y old"},
		}},
		// What is lifted is what these two are about to end. A crash then costs an older
		// try, which contract section 5 keeps for a while and does not promise to keep; the
		// other order would leave it beside content that it is no part of.
		{name: "RNTO over a file with a partial aside", old: old, aside: stepsPart, also: new, before: []string{"RNFR y"}, command: "RNTO x", want: new, steps: []stepsRow{
			{"renameat aside>lifted", "x old, y new, aside 1000"},
			{"renameat y>x", "x old, y new"},
			{"unlinkat lifted", "x new"},
			{"250", "x new"},
		}, failures: []stepsFailure{
			{"renameat y>x", "EIO", "451", "x old, y new, aside 1000"},
			{"renameat y>x", "ENOSPC", "452", "x old, y new, aside 1000"},
			{"renameat y>x", "EDQUOT", "552", "x old, y new, aside 1000"},
		}},
		{name: "DELE of a file with a partial aside", old: old, aside: stepsPart, command: "DELE x", want: new, steps: []stepsRow{
			{"renameat aside>lifted", "x old, aside 1000"},
			{"unlinkat x", "x old"},
			{"unlinkat lifted", ""},
			{"250", ""},
		}, failures: []stepsFailure{
			{"unlinkat x", "EIO", "451", "x old, aside 1000"},
			{"unlinkat x", "EROFS", "550", "x old, aside 1000"},
		}},
		{name: "MKD", command: "MKD made", steps: []stepsRow{
			{"mkdirat made", ""},
			{"257", "made/"},
		}, failures: []stepsFailure{
			{"mkdirat made", "EIO", "451", ""},
			{"mkdirat made", "ENOSPC", "452", ""},
			{"mkdirat made", "EDQUOT", "552", ""},
			{"mkdirat made", "EROFS", "550", ""},
		}},
		{name: "RMD", sub: true, command: "RMD sub", steps: []stepsRow{
			{"unlinkat sub", "sub/"},
			{"250", ""},
		}, failures: []stepsFailure{
			{"unlinkat sub", "EIO", "451", "sub/"},
			{"unlinkat sub", "EROFS", "550", "sub/"},
		}},
		{name: "the end of the server", old: old, want: new, steps: []stepsRow{
			{"openat temp", "x old"},
			{"write temp", "x old"},
			{"fchmod temp", "x old"},
			{"fsync temp", "x old"},
			{"renameat temp>ledger", "x old"},
			{"fsync state", "x old"},
		}},
	}
}

// phase is when strace has to be there for step number i, which may be beyond the last:
// 1 before the command, or 2 when the client has its 150 and sends nothing yet. A copy of
// the old file waits for neither.
func (op *stepsOp) phase(i int, step string) int {
	if slices.Contains(op.names()[:i], "150") && !strings.HasPrefix(step, "copy_file_range ") {
		return 2
	}
	return 1
}

func (op *stepsOp) names() []string {
	var names []string
	for _, row := range op.steps {
		names = append(names, row.step)
	}
	return names
}

// A stepsRecovery is an operation cut off in front of a step, and those in which the next
// server ends it. A lifted partial that it finds is removed before or after the rest, as
// the directory has it.
type stepsRecovery struct {
	op, cut string
	steps   []stepsRow
}

// stepsRecoveries is the table for a second crash: left is what the third server makes
// of it.
func stepsRecoveries() []stepsRecovery {
	return []stepsRecovery{
		{"STOR, a new name", "renameat stage>x", []stepsRow{
			{"flock stage", "x partial 302144"},
			{"fsetxattr stage", "x partial 302144"},
			{"fdatasync stage", "x partial 302144"},
			{"renameat stage>x", "x partial 302144"},
			{"fsync dir", "x partial 302144"},
		}},
		{"STOR over a file with a partial aside", "renameat stage>x", []stepsRow{
			{"flock stage", "x old, aside 302144"},
			{"fsetxattr stage", "x old, aside 302144"},
			{"fdatasync stage", "x old, aside 302144"},
			{"renameat stage>aside", "x old, aside 302144"},
			{"fsync dir", "x old, aside 302144"},
			{"unlinkat lifted", "x old, aside 302144"},
		}},
		{"REST + STOR on a partial of that name", "renameat stage>x", []stepsRow{
			{"flock stage", "x partial 302144"},
			{"fsetxattr stage", "x partial 302144"},
			{"fdatasync stage", "x partial 302144"},
			{"renameat stage>x", "x partial 302144"},
			{"fsync dir", "x partial 302144"},
		}},
		{"STOR, cut off, with a partial aside of a file renamed away", "renameat stage>x", []stepsRow{
			{"flock stage", "x partial 302144, y old"},
			{"fsetxattr stage", "x partial 302144, y old"},
			{"fdatasync stage", "x partial 302144, y old"},
			{"renameat stage>x", "x partial 302144, y old"},
			{"fsync dir", "x partial 302144, y old"},
			{"unlinkat lifted", "x partial 302144, y old"},
		}},
		{"STOR, cut off, with a partial aside of a file renamed away", "renameat aside>lifted", []stepsRow{
			{"fdatasync stage", "x partial 302144, y old"},
			{"renameat aside>lifted", "x partial 302144, y old"},
			{"renameat stage>x", "x partial 302144, y old"},
			{"unlinkat lifted", "x partial 302144, y old"},
			{"fsync dir", "x partial 302144, y old"},
		}},
		{"RNTO over a file with a partial aside", "renameat y>x", []stepsRow{
			{"flock lifted", "x old, y new"},
			{"unlinkat lifted", "x old, y new"},
		}},
		{"RNTO over a file with a partial aside", "unlinkat lifted", []stepsRow{
			{"flock lifted", "x new"},
			{"unlinkat lifted", "x new"},
		}},
		{"DELE of a file with a partial aside", "unlinkat lifted", []stepsRow{
			{"flock lifted", ""},
			{"unlinkat lifted", ""},
		}},
		{"REST + STOR into a complete file", "renameat stage>x", []stepsRow{
			{"flock stage", "x old"},
			{"unlinkat stage", "x old"},
		}},
		{"APPE to a complete file", "renameat stage>x", []stepsRow{
			{"flock stage", "x old"},
			{"unlinkat stage", "x old"},
		}},
	}
}
