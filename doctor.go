// doctor.go is berth doctor: what a finding is, how findings are written and shown, and
// as whom the daemon runs. What is looked at is in doctor_box.go for berth's own files and
// in doctor_system.go for the machine; client_doctor.go looks from the network. All of
// it only looks: no check changes anything, and each is bounded in time.
//
// A finding stands in the code as one string, and its numbers go in as strings, because
// there are two hundred of them: with fmt's arguments they would be 100 KB more.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// doctorWait bounds each question to something that may not answer: a socket, a
	// name server, another program.
	doctorWait = 5 * time.Second
	// doctorOutput bounds what is read of another program or page: the metrics of 1,000
	// users have half a megabyte.
	doctorOutput = 8 << 20
)

// A level is how bad a finding is.
type level uint8

const (
	levelOK   level = iota
	levelNote       // to know; or not looked at
	levelWarn       // will hurt one day
	levelFail       // hurts
)

var levelNames = [...]string{"ok", "note", "warn", "FAIL"}

// A finding is one line of doctor's, and as JSON an object.
type finding struct {
	Group  string   `json:"group"`
	Check  string   `json:"check"` // the same for each run, for programs
	Level  string   `json:"level"`
	Text   string   `json:"text"`
	Remedy []string `json:"remedy,omitempty"` // lines to change, and commands to type, as they stand
}

// A doctor collects findings, and prints them as they come.
type doctor struct {
	inv    *invocation
	ctx    context.Context
	group  string
	opened string // group whose heading is printed
	counts [levelFail + 1]int
	place  string // where the configuration is, for lines to change
	word   string // the option for a port, from afar; "": the usual one
	failed error  // the first finding that could not be written

	// The box:
	path   string  // of the configuration
	data   []byte  // its text
	cfg    *config // nil: it cannot be read
	wrong  configErrors
	users  []*user
	hidden bool // who the users are is for root to see
	daemon daemonProc
	units  map[string]map[string]string // what systemctl show says, by unit; nil: there is no systemd
	page   string                       // of /metrics; "": there is none
	ports  *portTable
}

func doctorVerb() verb {
	return verb{name: "doctor", args: "[[USER@]HOST]", max: 1, words: hostWords, run: runDoctor,
		help: "say what is wrong here, or with a box, and what to do",
		text: "Without HOST it looks at this machine: configuration, permissions, ports, certificate, clock, kernel,\n" +
			"quotas against the disk, limits, log, units. Run it as root: what it cannot see otherwise it says. With\n" +
			"HOST it looks from here: names, reachability, TLS, PASV and EPSV, every passive port, datagrams.\n\n" +
			"Each line is ok, a note, a warning or a failure; below it are the lines to change and the commands to\n" +
			"type. A key as passive.address stands in the file as address, below [passive]. Nothing is changed, but\n" +
			"for a file that --write sends and deletes. The exit code is 1 if anything failed, 2 for wrong words, and\n" +
			"3 if there was no connection to HOST; notes and warnings do not count.",
		options: with([]option{
			configOption,
			{name: "deep", help: "on the box: count every file of every home, however long it takes"},
			{name: "ports", arg: "LOW-HIGH", help: "the passive ports of HOST, where it is no berth or there is no login",
				check: func(value string) error { return new(portRange).UnmarshalText([]byte(value)) }},
			{name: "all-ports", help: "try every passive port, not up to 1024 of them"},
			{name: "write", help: "send HOST a file of 64 KiB, fetch it, and delete it"},
		}, []option{jsonOption}),
		examples: []example{
			{"berth doctor", "on the box, as root"},
			{"berth doctor ann@box", "from where it does not work"},
			{"berth doctor --ports 50000-50099 -p 21 box", "any FTP server, without a login"},
		}}
}

// runDoctor is one verb, whose argument decides. Both end with a signal, as the
// client's verbs do.
func runDoctor(inv *invocation) error {
	v := *inv.verb
	v.run = runDoctorBox
	if len(inv.args) > 0 {
		v.run = runDoctorFar
	}
	inv.verb = &v
	return runClient(inv)
}

// say is a finding: "check|text|remedy|remedy ...". In all but the first $1 stands for the
// first of args, %1 for it as a word of a shell, $c for the option that names the
// configuration, and $p for the one of the port. A remedy that begins with @ is a line of the configuration, with + one of
// the daemon's unit, with * one for sysctl; ^ is the restart.
func (d *doctor) say(l level, what string, args ...string) {
	if d.ctx.Err() != nil {
		return
	}
	parts := splitText(what, "|")
	// One line: a stranger's certificate has names with line ends, to tell people what to run.
	f := finding{Group: d.group, Check: parts[0], Level: strings.ToLower(levelNames[l]), Text: shownText(d.fill(parts[1], args))}
	for _, part := range parts[2:] {
		for _, line := range splitText(d.fill(part, args), "\n") {
			if line == "" {
				continue
			}
			or, is := "", line
			if beginsWith(is, "or: ") {
				or, is = "or: ", is[4:]
			}
			is = strings.TrimLeft(is, "@+*^")
			more := ""
			switch line[len(or)] {
			case '@':
				key, _, _ := cutText(is, " ")
				is += "   in " + d.place
				if n := lineOf(d.data, key); n > 0 {
					is += ", line " + itoa(n)
				}
			case '+':
				is += "   in systemctl edit berth"
			case '*':
				is += "   in /etc/sysctl.d/berth.conf"
				more = "sysctl --system"
			case '^':
				if is = "systemctl restart berth"; d.units["berth.service"] == nil {
					is = d.fill("berth serve$c", nil)
					if d.daemon.pid != 0 {
						is = d.fill("berth drain$c && ", nil) + is
					}
				}
			}
			if f.Remedy = append(f.Remedy, or+is); more != "" {
				f.Remedy = append(f.Remedy, more)
			}
		}
	}
	d.counts[l]++
	if d.inv.on("json") {
		b, _ := json.Marshal(f) // strings cannot fail
		d.write(string(progressEscape(b)) + "\n")
		return
	}
	out := ""
	if d.opened != d.group {
		d.opened = d.group
		out = d.group + "\n"
	}
	word := (levelNames[l] + "   ")[:4]
	if d.inv.colours("auto") {
		word = "\x1b[" + [...]string{"32", "36", "33", "1;31"}[l] + "m" + word + "\x1b[0m"
	}
	out += "  " + word + "  " + d.inv.fold(f.Text, 8) + "\n"
	for _, line := range f.Remedy {
		out += "          " + line + "\n"
	}
	d.write(out)
}

func (d *doctor) write(s string) {
	if _, err := io.WriteString(d.inv.stdout, s); d.failed == nil {
		d.failed = err
	}
}

// fill puts args where they belong. What comes from elsewhere is made fit to be shown.
func (d *doctor) fill(text string, args []string) string {
	var b builder
	for i := 0; i < len(text); i++ {
		c := text[i]
		if (c != '$' && c != '%') || i+1 == len(text) {
			b.WriteByte(c)
			continue
		}
		i++
		n := int(text[i] - '1')
		switch {
		case text[i] == 'c':
			if d.path != "" && d.path != defaultConfigPath {
				b.WriteString(" --config " + shellQuote(d.path))
			}
		case text[i] == 'p':
			b.WriteString(d.word)
		case n >= len(args):
			b.WriteString(text[i-1 : i+1])
		case c == '%':
			b.WriteString(shownText(shellQuote(args[n])))
		default:
			b.WriteString(shownLines(args[n]))
		}
	}
	return b.String()
}

// unseen tells whether err is that this process may not look there, and says so.
func (d *doctor) unseen(check, what string, err error) bool {
	if os.Geteuid() == 0 || !errors.Is(err, fs.ErrPermission) {
		return false
	}
	d.say(levelNote, check+"|$1: not looked at: needs root|sudo berth doctor$c", what)
	return true
}

// end tells how it was, and is the exit code.
func (d *doctor) end() error {
	if d.ctx.Err() != nil {
		return errInterrupted
	}
	if !d.inv.on("json") {
		out := "\n" + itoa(d.counts[levelOK]) + " ok"
		for l, word := range []string{"", "note", "warning", "failure"} {
			if n := d.counts[l]; l > 0 {
				out += ", " + itoa(n) + " " + plural(n, word)
			}
		}
		d.write(out + "\n")
	}
	if d.failed != nil {
		return d.failed
	}
	if d.counts[levelFail] > 0 {
		return exitWith(exitFailed)
	}
	return nil
}

func runDoctorBox(inv *invocation) error {
	for _, name := range []string{"ports", "all-ports", "write"} {
		if inv.on(name) {
			return usageErr("--%s is for another box: berth doctor --%s ... HOST", name, name)
		}
	}
	d := &doctor{inv: inv, ctx: inv.ctx, path: inv.str("config")}
	d.place = d.path
	for i, look := range []func(){
		d.configuration, d.checkUnits, d.checkDaemon, d.checkFiles, d.checkPorts, d.checkPassive, d.checkCertificate,
		d.checkDisks, d.checkCommands, d.checkKernel, d.checkLimits, d.checkClock, d.checkLog, d.checkFirewall,
	} {
		if d.group, _, _ = cutText(boxGroups[i], ":"); d.looks(i) {
			look()
		}
	}
	return d.end()
}

// boxGroups are the headings in their order, and behind each what of the configuration has
// to be right for it; "-": nothing, not even that it can be read.
var boxGroups = [...]string{"configuration:-", "units:-", "daemon:server", "files:server", "ports:", "passive ports:passive", "certificate:tls",
	"quotas and disks:server", "commands:exec", "kernel:-", "limits:limits.sessions", "clock:-", "log:-", "firewall:listen"}

// looks tells whether there is a configuration that is right enough for a group.
func (d *doctor) looks(i int) bool {
	_, needs, _ := cutText(boxGroups[i], ":")
	return isText(needs, "-") || d.cfg != nil && (needs == "" || !d.wrong.has(needs))
}

// program runs one of the system's own, and returns what it prints.
func (d *doctor) program(name string, args ...string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer null.Close()
	out, in, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer out.Close()
	// Not exec.Cmd, which is 26 KB of the binary.
	p, err := os.StartProcess(path, append([]string{name}, args...), &os.ProcAttr{
		Env:   append(os.Environ(), "LC_ALL=C"),
		Files: []*os.File{null, in, null},
	})
	in.Close()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(d.ctx, doctorWait)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		p.Kill()
		out.SetReadDeadline(time.Now().Add(time.Second)) // what it started may hold the other end
	})()
	text, err := io.ReadAll(out)
	ended, waitErr := p.Wait()
	switch {
	case waitErr != nil:
		err = waitErr
	case !ended.Success():
		err = newError(ended.String())
	}
	return string(text), err
}

// dial connects to something on this machine or near it, in bounded time.
//
//go:noinline
func (d *doctor) dial(network, address string) (net.Conn, error) {
	return (&net.Dialer{Timeout: doctorWait}).DialContext(d.ctx, network, address)
}

// answers tells whether anybody listens there.
func (d *doctor) answers(network, address string) error {
	c, err := d.dial(network, address)
	if err == nil {
		c.Close()
	}
	return err
}

// fileText is what is in a file that may not be there, up to doctorOutput.
func fileText(path string) string {
	data, _ := readConfigBytes(path, doctorOutput)
	return strings.TrimSpace(string(data))
}

// --- who the daemon is ---

// A daemonProc is the daemon: the one that runs, or as whom it would.
type daemonProc struct {
	pid    int // 0: none runs, or none that can be seen
	uid    int
	gid    int
	groups []string
	how    string // how its user is known
	name   string // for chown
}

//go:noinline
func (p *daemonProc) proc(file string) string { return "/proc/" + itoa(p.pid) + "/" + file }

// findDaemon finds the process that holds the state directory's ledger, or else the one
// that listens on the local socket. The latter may be systemd, which opened it.
func (d *doctor) findDaemon() {
	p := &d.daemon
	var st unix.Stat_t
	lock := joinPath(d.cfg.Server.StateDir, ledgerLock)
	if unix.Stat(lock, &st) == nil {
		at := fmt.Sprintf("%02x:%02x:%d", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)), st.Ino)
		// What these tell of a file is not the device that the locks are of.
		var disk unix.Statfs_t
		if unix.Statfs(lock, &disk) == nil {
			switch uint32(disk.Type) {
			case unix.BTRFS_SUPER_MAGIC, unix.OVERLAYFS_SUPER_MAGIC:
				at = at[strings.LastIndexByte(at, ':'):]
			}
		}
		p.pid = lockHolder(fileText("/proc/locks"), at)
	}
	// A knock at systemd's socket would start the daemon.
	if local := d.cfg.Listen.Local; p.pid == 0 && len(local) > 0 && !d.active(socketUnit("local")) {
		if conn, err := d.dial("unix", local[0]); err == nil {
			if peer, ok := peerCredentials(conn); ok && peer.pid > 1 {
				p.pid = int(peer.pid)
			}
			conn.Close()
		}
	}
	if p.pid == 0 {
		p.pid = atoi(d.unit("berth.service", "MainPID"))
	}
	status := fileText(p.proc("status"))
	if p.pid != 0 && status != "" {
		for _, line := range splitText(status, "\n") {
			f := strings.Fields(line)
			switch {
			case len(f) > 2 && f[0] == "Uid:":
				p.uid = atoi(f[2]) // the effective one
			case len(f) > 2 && f[0] == "Gid:":
				p.gid = atoi(f[2])
			case len(f) > 0 && f[0] == "Groups:":
				p.groups = f[1:]
			}
		}
		p.how = "it runs so"
	} else {
		p.pid = 0
		switch {
		case d.unit("berth.service", "User") != "" && p.fromPasswd(d.unit("berth.service", "User")):
			p.how = "User= of berth.service"
		case unix.Stat(d.cfg.Server.StateDir, &st) == nil:
			p.uid, p.gid, p.how = int(st.Uid), int(st.Gid), "whom "+d.cfg.Server.StateDir+" belongs to"
			p.fromPasswd(itoa(p.uid))
		case p.fromPasswd("berth"):
			p.how = "there is such a user"
		default:
			p.uid, p.gid, p.how = os.Geteuid(), os.Getegid(), "who asks"
		}
	}
	if p.name = passwdName(p.uid); p.name == "" {
		p.name = itoa(p.uid)
	}
}

// lockHolder is the process that holds a lock on a file whose device and inode end so, by
// proc_locks(5); 0: nobody.
func lockHolder(locks, end string) int {
	for _, line := range splitText(locks, "\n") {
		if f := strings.Fields(line); len(f) > 5 && f[1] == "FLOCK" && strings.HasSuffix(f[5], end) {
			return max(0, atoi(f[4]))
		}
	}
	return 0
}

// fromPasswd fills in the user of that name or number, and his groups.
func (p *daemonProc) fromPasswd(name string) (found bool) {
	for _, line := range splitText(fileText("/etc/passwd"), "\n") {
		if f := splitText(line, ":"); len(f) > 3 && (f[0] == name || f[2] == name) {
			name, found = f[0], true
			p.uid, p.gid = atoi(f[2]), atoi(f[3])
			break
		}
	}
	for _, line := range splitText(fileText(groupFile), "\n") {
		if f := splitText(strings.TrimSpace(line), ":"); len(f) > 3 && found && hasText(","+f[3]+",", ","+name+",") {
			p.groups = append(p.groups, f[2])
		}
	}
	return found
}

// may asks whether the daemon's user may do that with a path: nil, or why not. Modes
// decide. Where there is an access control list root asks the kernel in the daemon's
// name, and others take it that the list is there to let him in.
func (p *daemonProc) may(path string, want uint32) error {
	ask := func() error { return unix.Faccessat(unix.AT_FDCWD, path, want, unix.AT_EACCESS) }
	if os.Geteuid() == p.uid {
		return ask()
	}
	if _, err := unix.Getxattr(path, "system.posix_acl_access", nil); err == nil {
		if os.Geteuid() != 0 {
			return nil
		}
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends, with whom it has become
			unix.SetfsgidRetGid(p.gid)
			unix.SetfsuidRetUid(p.uid)
			done <- ask()
		}()
		return <-done
	}
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	shift := 0
	switch {
	case err != nil || p.uid == 0:
		return err
	case int(st.Uid) == p.uid:
		shift = 6
	case int(st.Gid) == p.gid:
		shift = 3
	default:
		for _, g := range p.groups {
			if atoi(g) == int(st.Gid) {
				shift = 3
			}
		}
	}
	if st.Mode>>shift&want != want {
		return unix.EACCES
	}
	return nil
}

// barred is the first directory on the way to path, or path itself, that keeps the
// daemon out, and why; "" if none does.
func (p *daemonProc) barred(path string, want uint32) (at string, err error) {
	for i := 1; i <= len(path); i++ {
		w := uint32(unix.X_OK)
		if i == len(path) {
			w = want
		} else if path[i] != '/' {
			continue
		}
		if err := p.may(path[:i], w); err != nil {
			return path[:i], err
		}
	}
	return "", nil
}
