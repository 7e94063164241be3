// These tests are about the operator's verbs, run in this process against a daemon that
// is another one: what they print, how they exit, and to whom the daemon listens.

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// administered is a daemon with a local socket, and the text of its [listen].
func administered(t *testing.T, more string) (p *process, b *ftpBox, file, listen string) {
	t.Helper()
	listen = fmt.Sprintf("log.format = \"json\"\nlisten = { control = [\"127.0.0.1:0\"], datagram = [], http = [], local = [%q] }\n", filepath.Join(shortDir(t), "s"))
	file, b = writeConfig(t, listen+more)
	p = serveBerth(t, file, nil)
	drainLog(p)
	return p, b, file, listen
}

// says runs a verb and compares its exit code, what it prints and what it complains of.
func says(t *testing.T, code int, out, errs string, args ...string) {
	t.Helper()
	if c, o, e := cli(t, args...); c != code || !wildcard(out, o) || !wildcard(errs, e) {
		t.Errorf("berth %q: %d, %q, %q; want %d, %q, %q", args, c, o, e, code, out, errs)
	}
}

// sessionsOf are the sessions that who lists, by their users.
func sessionsOf(t *testing.T, file string) map[string][]whoEntry {
	t.Helper()
	code, out, errs := cli(t, "who", "--json", "--config", file)
	if code != exitOK || errs != "" {
		t.Fatalf("who: %d, %q", code, errs)
	}
	all := map[string][]whoEntry{}
	for line := range strings.Lines(out) {
		var e whoEntry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("who --json: %q: %v", line, err)
		}
		all[e.User] = append(all[e.User], e)
	}
	return all
}

// An operator whose uid is a user's can look after what keeps that user out.
func TestAdminWhereHisUserMayNot(t *testing.T) {
	t.Parallel()
	p, b, file, _ := administered(t, "")
	b.user(t, "boss", fmt.Sprintf("uid = %d\nsessions = 1\nhome = %q\n", os.Getuid(), filepath.Join(b.dir, "boss")))
	says(t, exitOK, "Reloaded.\n", "", "reload", "--config", file)
	var local *ftpClient
	waitUntil(t, "the session of the reload is over", func() bool {
		local = p.dial("local")
		return strings.Contains(local.want("220 *"), "logged in as boss.")
	})
	says(t, exitOK, "*boss*", "", "who", "--config", file)
	second := p.dial("local")
	second.want("220 * ready.")
	second.cmd("PWD", "530 *")
	local.cmd("QUIT", "221 *")
	local.closed()
}

func TestAdminVerbs(t *testing.T) {
	t.Parallel()
	p, b, file, listen := administered(t, "limits.data_timeout = \"1m\"\n")
	b.user(t, "bob", "")
	at := func(args ...string) []string { return append(args, "--config", file) }
	says(t, exitOK, "ID  USER  PROTOCOL  ADDRESS  SINCE  VERB  FILE  PROGRESS  RATE\n", "", at("who")...)
	says(t, exitOK, "", "", at("who", "--json")...)
	says(t, exitOK, "Reloaded.\n", "", at("reload")...) // bob is there

	line := p.dial("control").login()
	stranger := p.dial("control") // nobody yet, and nobody's business
	stranger.want("220 *")
	framed := p.dial("control")
	framed.want("220 *")
	bob := framed.frames().enter("bob")
	line.cmd("EPSV", "229 *")
	line.open()
	line.cmd("STOR f", "150 *")
	var doing string
	for end := time.Now().Add(replyTime); !wildcard("STOR * bytes", doing); time.Sleep(10 * time.Millisecond) {
		if doing = sessionsOf(t, file)["ann"][0].Doing; time.Now().After(end) {
			t.Fatalf("who says of ann %q", doing)
		}
	}
	all := sessionsOf(t, file)
	if len(all) != 2 || len(all["ann"]) != 1 || len(all["bob"]) != 1 {
		t.Fatalf("%+v", all)
	}
	for name, want := range map[string]whoEntry{"ann": {Protocol: "ftp", Doing: "STOR 0 bytes"}, "bob": {Protocol: "frames", Doing: "idle"}} {
		e := all[name][0]
		since, err := time.Parse(time.RFC3339, e.Since)
		if err != nil || time.Since(since) < 0 || time.Since(since) > replyTime || e.ID == 0 || e.Protocol != want.Protocol || e.Doing != want.Doing || e.Address != "127.0.0.1" {
			t.Errorf("%+v; want %+v", e, want)
		}
	}
	_, out, _ := cli(t, at("who")...)
	rows := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(rows) != 3 || !wildcard("ID  USER  PROTOCOL  ADDRESS    SINCE  *VERB*FILE*", rows[0]) {
		t.Fatalf("who: %q", out)
	}
	for i, name := range []string{"ann", "bob"} {
		e := all[name][0]
		since, _ := time.Parse(time.RFC3339, e.Since)
		does := map[string]string{"ann": "STOR /f - -", "bob": "idle 0:0* - - -"}[name]
		if want := fmt.Sprintln(e.ID, name, e.Protocol, e.Address, since.Local().Format("2006-01-02 15:04:05"), does); !wildcard(strings.TrimSpace(want), strings.Join(strings.Fields(rows[1+i]), " ")) {
			t.Errorf("who: %q; want %q", rows[1+i], want)
		}
	}

	says(t, exitOK, "Told 1 session at once. 1 more in FTP, which has no words for it: SITE SAY shows it there.\n", "", at("wall", "back in", "five minutes")...)
	says(t, exitFailed, "", "berth wall: wall needs a text.\n", at("wall", " ", "\t")...)
	if m := bob.heard(); m.From != "operator" || m.Text != "back in five minutes" {
		t.Errorf("%+v", m)
	}

	for _, word := range []string{"ann", "0", "-1", "1x", "99999999999999999999"} {
		says(t, exitUsage, "", "berth kick: *"+word+"*", "kick", "--config", file, "--", word)
	}
	says(t, exitFailed, "", "berth kick: There is no other session 4711; who lists them.\n", at("kick", "4711")...)
	says(t, exitOK, "Ended.\n", "", at("kick", fmt.Sprint(all["ann"][0].ID))...)
	line.conn.SetReadDeadline(time.Now().Add(replyTime))
	if rest, err := io.ReadAll(line.r); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("who was kicked reads %q, %v", rest, err)
	}
	waitUntil(t, "ann is gone", func() bool { return len(sessionsOf(t, file)["ann"]) == 0 })
	b.missing(t, "f")
	bob.do(`{"do":"time"}`, 200, "")

	// A configuration that is refused: by its file and line, in the daemon's own words,
	// although the verb cannot read it either.
	b.configure(t, listen+"limits.idle = \"forever\"\nlimits.sesions = 3\n")
	says(t, exitFailed, "", "berth reload: The old configuration stays: "+file+":3:15: limits.idle: *\n"+file+":4:*limits.sesions*sessions*\n", at("reload")...)
	says(t, exitOK, "*bob*", "", at("who")...) // the other verbs work with it
	// One with another [listen] is found by the new path or not at all; with all else
	// alike the daemon says why it stays.
	b.configure(t, strings.Replace(listen, "datagram = []", "datagram = [\"127.0.0.1:0\"]", 1))
	says(t, exitFailed, "", "berth reload: The old configuration stays: [listen] can change only at a restart, all but proxy_from\n", at("reload")...)
	b.configure(t, listen+"server.name = \"another\"\n")
	says(t, exitOK, "Reloaded.\n", "", at("reload")...)
	another := p.dial("control")
	another.want("220 another ready.")
	for _, c := range []*ftpClient{another, stranger} {
		c.cmd("QUIT", "221 *")
	}

	says(t, exitOK, "Draining.\n", "", at("drain")...)
	bob.do(`{"do":"quit"}`, 221, "")
	p.ended(exitOK)
	for _, args := range [][]string{{"who"}, {"who", "--json"}, {"kick", "1"}, {"wall", "x"}, {"drain"}, {"reload"}} {
		says(t, exitNoConn, "", "berth "+args[0]+": */s: no daemon listens there; is berth running, and does --config name its configuration?\n", at(args...)...)
	}
}

// Two drains are one: the second must not end it at once, as a second SIGTERM does.
func TestAdminDrainTwice(t *testing.T) {
	t.Parallel()
	p, b, file, _ := administered(t, "")
	p.addrs["local"] = b.localPath(t, file)
	op := p.dial("local")
	op.want("220 *")
	local := op.frames()
	busy := p.dial("control").login()
	busy.cmd("EPSV", "229 *")
	data := busy.open()
	busy.cmd("STOR f", "150 *")
	io.WriteString(data, "one ")
	for range 3 { // the listener goes with the first
		local.do(`{"do":"drain"}`, 200, "")
	}
	busy.send("STAT\r\n")
	busy.reply()
	io.WriteString(data, "two")
	data.Close()
	busy.want("226 *")
	busy.cmd("QUIT", "221 *")
	p.ended(exitOK)
	if got := b.content(t, "f"); got != "one two" {
		t.Errorf("%q", got)
	}
}

// While it drains the operator sees whom it waits for, and may end that: by a socket beside
// the local one, which systemd may keep for the next daemon. Nobody else comes in there, and
// the daemon does not wait for who watches.
func TestAdminWhileDraining(t *testing.T) {
	t.Parallel()
	p, b, file, _ := administered(t, "server.drain = \"5m\"\n")
	path := b.localPath(t, file)
	p.addrs["local"] = path
	at := func(args ...string) []string { return append(args, "--config", file) }
	b.user(t, "me", fmt.Sprintf("uid = %d\n", os.Getuid())) // who would be logged in by that
	says(t, exitOK, "Reloaded.\n", "", at("reload")...)
	busy := p.dial("control").login()
	busy.cmd("EPSV", "229 *")
	busy.open()
	busy.cmd("STOR f", "150 *")
	waitUntil(t, "the upload runs", func() bool { a := sessionsOf(t, file)["ann"]; return len(a) == 1 && a[0].Verb == "STOR" })

	says(t, exitOK, "Draining.\n", "", at("drain")...)
	waitUntil(t, "the daemon drains", func() bool { _, err := os.Stat(path); return err != nil })
	heardLate(t, path)
	says(t, exitOK, "ID *\n* ann *STOR */f *\n", "", at("who")...)
	says(t, exitOK, "Draining.\n", "", at("drain")...)
	says(t, exitOK, "Told 0 sessions at once. 1 more in FTP*", "", at("wall", "last call")...)
	says(t, exitOK, "USER *\nann *counted\nme *counted\n", "", "user", "usage", "--config", file)
	says(t, exitFailed, "", "berth reload: The daemon is going down, and reads nothing any more.\n", at("reload")...)

	p.addrs["local"] = path + lateSuffix
	login := p.dial("local")
	login.want("220 *")
	login.cmd("USER ann", "331 *")
	login.cmd("PASS secret", "421 *going down*")
	if code, all := examine(t, file); code != exitOK || the(all, "port", "takes nobody new") == nil {
		t.Errorf("doctor: %d, %+v", code, all)
	}
	watcher := p.dial("local") // stays to the end, and is not waited for
	watcher.want("220 *")
	watcher.frames().do(`{"do":"who"}`, 226, "")
	if os.Getuid() == 0 {
		dir := filepath.Dir(path)
		client := filepath.Join(dir, "berth.toml")
		if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(client, fmt.Appendf(nil, "listen.local = [%q]\n", path), 0o644)); err != nil {
			t.Fatal(err)
		}
		if code, out := asSomebody(t, reachable(t, dir), 65534, 65534, nil, "who", "--config", client); code != exitNoConn || !strings.Contains(out, "421 The server is going down") {
			t.Errorf("nobody: %d, %q", code, out)
		}
	}
	says(t, exitOK, "Ended.\n", "", at("kick", fmt.Sprint(sessionsOf(t, file)["ann"][0].ID))...)
	p.ended(exitOK)
	if _, err := os.Stat(path + lateSuffix); err == nil {
		t.Error("the socket stays behind")
	}
}

// heardLate waits until a daemon that drains hears the operator: the socket's file is there
// a moment before anybody listens on it.
func heardLate(t *testing.T, path string) {
	t.Helper()
	waitUntil(t, "the operator is heard", func() bool {
		d, err := dialLocal(path+lateSuffix, false)
		if err == nil {
			d.close()
		}
		return err == nil
	})
}

// Beside a local socket where everybody may make files, nobody is taken for the daemon that
// drains but who may run one.
func TestAdminFalseDrainSocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "s"+lateSuffix)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	listens := make(chan error)
	somebody := os.Geteuid() == 0
	go func() {
		if somebody { // this thread alone, which ends with the goroutine
			runtime.LockOSThread()
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
				listens <- errno
				return
			}
		}
		listens <- unix.Listen(fd, 1)
	}()
	if err := <-listens; err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, tc := range []struct {
		mode os.FileMode
		want bool
	}{{0o755, true}, {0o777 | os.ModeSticky, !somebody}, {0o770, true}} {
		if err := os.Chmod(dir, tc.mode); err != nil {
			t.Fatal(err)
		}
		if got := believed(c, path); got != tc.want {
			t.Errorf("%v: %t", tc.mode, got)
		}
	}
	if somebody {
		if err := errors.Join(os.Chown(dir, 65534, -1), os.Chmod(dir, 0o777)); err != nil {
			t.Fatal(err)
		}
		if !believed(c, path) {
			t.Error("whose directory it is")
		}
	}
}

// localPath is where the operator is heard, by the configuration in file.
func (b *ftpBox) localPath(t *testing.T, file string) string {
	t.Helper()
	cfg, err := loadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	return cfg.Listen.Local[0]
}

// What answers at the socket may be anything.
func TestAdminStrangeAnswers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ what, answers, says string }{
		{"hangs up", "", "*/s: the daemon hung up: it has ended, or this session was kicked\n"},
		{"is full", "421 Too many connections\x1b[2J: at most 3; try again later.\r\n", "*/s: 421 Too many connections*: at most 3; try again later.\n"},
		{"is another program", "SSH-2.0-OpenSSH_9.2\r\n", "*/s: *\n"},
		{"talks without end", strings.Repeat("220-\r\n", 2*adminGreetings), "*/s: the daemon hung up: it talks without end\n"},
		{"knows no frames", "220 ready\r\n500 What?\r\n", "*/s: 500 What?\n"},
		{"hangs up in the middle", "220 ready\r\n200 1\r\n\x00\x00", "*/s: the daemon hung up: *\n"},
		{"sends a bad frame", "220 ready\r\n200 1\r\n\xff\xff\xff\xffA{}", "*/s: the daemon hung up: *\n"},
		{"answers nonsense", "220 ready\r\n200 1\r\n" + string(appendFrame(nil, frameAnswer, []byte("{"))), "*/s: the daemon hung up: *\n"},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(shortDir(t), "s")
			file, _ := writeConfig(t, fmt.Sprintf("listen.local = [%q]\n", path))
			ln, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, test.answers)
				c.(*net.UnixConn).CloseWrite()
				io.Copy(io.Discard, c)
				c.Close()
			}()
			code, out, errs := cli(t, "reload", "--config", file)
			if code != exitNoConn || out != "" || !wildcard("berth reload: "+test.says, errs) || strings.Contains(errs, "\x1b") {
				t.Errorf("%d, %q, %q; want %q", code, out, errs, test.says)
			}
		})
	}
}

func TestAdminWithoutLocalSocket(t *testing.T) {
	t.Parallel()
	file, _ := writeConfig(t, "listen.local = []\n")
	says(t, exitFailed, "", "berth who: listen.local is empty in "+file+", and that is where the operator is heard; write *\n", "who", "--config", file)
}

// --- who may ---

// reachable is a copy of the test binary in dir, for who may not read where that lies.
func reachable(t *testing.T, dir string) (binary string) {
	t.Helper()
	binary = filepath.Join(dir, "berth")
	if err := os.Link(os.Args[0], binary); err != nil {
		text, err := os.ReadFile(os.Args[0])
		if err == nil {
			err = os.WriteFile(binary, text, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return binary
}

// asSomebody runs a verb of a binary that is reachable as a process of other credentials,
// and returns its exit code and all that it printed.
func asSomebody(t *testing.T, binary string, uid, gid uint32, groups []uint32, args ...string) (int, string) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), asBerth+"=1", noRaceSleep)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}}
	out, _ := cmd.CombinedOutput()
	return cmd.ProcessState.ExitCode(), string(out)
}

// pretendGroup runs a program with another /etc/group, in a mount namespace of its own:
// the group need not be there on the machine that runs the test.
const pretendGroup = `mount --bind "$0" /etc/group && exec "$@"`

// The operator is root, who runs the daemon, and the members of berth-admin, by their
// first group or any other. Everybody else is told so, and is no operator.
func TestOperatorsGroup(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	dir := shortDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	binary := reachable(t, dir)
	group := filepath.Join(dir, "group")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(group, []byte("root:x:0:\nusers:x:100:\n"+text), 0o644); err != nil { // in place: it is mounted
			t.Fatal(err)
		}
	}
	const gid, stranger = 54321, 54322
	write("berth-admins:x:54322:\nberth-admin:x:54321:somebody\n")
	path := filepath.Join(dir, "s")
	own, _ := writeConfig(t, fmt.Sprintf("log.format = \"json\"\nlisten = { control = [], datagram = [], http = [], local = [%q] }\n", path))
	client := filepath.Join(dir, "berth.toml") // for who cannot read the daemon's own
	if err := os.WriteFile(client, fmt.Appendf(nil, "listen.local = [%q]\n", path), 0o644); err != nil {
		t.Fatal(err)
	}
	m := newManager(t)
	daemon := exec.Command("unshare", "--mount", "sh", "-c", pretendGroup, group, os.Args[0], "serve", "--config", own)
	daemon.Env = append(os.Environ(), asBerth+"=1", m.env())
	var errs syncBuffer
	daemon.Stderr = &errs
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		daemon.Process.Signal(syscall.SIGTERM)
		if err := daemon.Wait(); err != nil {
			t.Errorf("the daemon ends with %v: %s", err, errs.String())
		}
	})
	m.hears("READY=1\n*")
	m.close()

	many := make([]uint32, 300) // more than are asked for at once
	for i := range many {
		many[i] = uint32(1000 + i) // the kernel sorts them: these come first
	}
	for _, test := range []struct {
		who      string
		uid, gid uint32
		groups   []uint32
		operates bool
	}{
		{"root", 0, 0, nil, true},
		{"root without the group", 0, stranger, []uint32{stranger}, true},
		{"nobody", 65534, 65534, nil, false},
		{"one whose number is the group's", gid, stranger, nil, false},
		{"one of another group", 65534, stranger, []uint32{100, stranger}, false},
		{"one of many groups", 65534, stranger, many, false},
		{"a member by his first group", 65534, gid, nil, true},
		{"a member", 65534, 65534, []uint32{100, gid, stranger}, true},
		{"a member of many groups", 65534, 65534, append(many[:len(many):len(many)], gid), true},
	} {
		verbs := [][]string{{"reload"}}
		if strings.HasPrefix(test.who, "a member") == test.operates && len(test.groups) < 4 && test.gid == test.uid { // one for each answer: starting takes long
			verbs = [][]string{{"who"}, {"reload"}, {"wall", "x"}, {"kick", "4711"}}
		}
		for _, args := range verbs {
			code, out := asSomebody(t, binary, test.uid, test.gid, test.groups, append(args, "--config", client)...)
			told := strings.Contains(out, "nly root and the group berth-admin")
			if test.operates == told || test.operates && code != exitOK && args[0] != "kick" || !test.operates && code != exitFailed {
				t.Errorf("berth %s by %s: %d, %q", args[0], test.who, code, out)
			}
		}
	}

	// Who is taken out of the group is out at once, and a group that is gone has no members.
	for _, text := range []string{"berth-admin:x:54323:\n", ""} {
		write(text)
		if code, out := asSomebody(t, binary, 65534, 65534, []uint32{gid}, "reload", "--config", client); code != exitFailed {
			t.Errorf("with %q: %d, %q", text, code, out)
		}
	}

	// And the file's mode decides who may knock at all.
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	code, out := asSomebody(t, binary, 65534, 65534, nil, "who", "--config", client)
	if want := "berth who: " + path + ": permission denied; try with sudo, or as a member of the group berth-admin\n"; code != exitNoConn || out != want {
		t.Errorf("a socket that is not for everybody: %d, %q; want %q", code, out, want)
	}
}
