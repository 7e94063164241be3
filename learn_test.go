package main

// berth learn: what dialogues of devices tell, those of real clients among them, and that
// a recording has what it should, nothing secret, and an end.

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// dialogue is a recording from short lines: "C ...", "S ...", "! ...". An empty line
// begins another session.
func dialogue(lines string) string {
	var b strings.Builder
	session := 1
	for line := range strings.Lines(strings.TrimSpace(lines)) {
		if line = strings.TrimSpace(line); line == "" {
			session++
			continue
		}
		fmt.Fprintf(&b, "20:00:00.000 %d %s\n", session, line)
	}
	return b.String()
}

// TestDialoguesTellWhatDevicesNeed has one of each kind of device, after field.md 3a.
func TestDialoguesTellWhatDevicesNeed(t *testing.T) {
	const login = "S 220 box ready.\nC USER d\nS 331 Password required.\nC PASS ***\nS 230 Logged in.\n"
	for _, tt := range []struct{ device, lines, keys, says string }{
		{"camera that waits for EPSV", `! connected from 10.0.9.4, ftp
			S 220 box ready.
			C USER d
			S 530 Passwords are not accepted in clear text from there; use AUTH TLS first.
			! ended: closed

			` + login + `C TYPE I
			C CWD /cam/2026/11
			S 550 No such file or directory.
			C MKD /cam/2026/11
			S 257 "/cam/2026/11" created.
			C EPSV
			S 229 Entering Extended Passive Mode (|||50001|)
			C STOR 1.jpg
			! passive data connection: no_data_connection
			S 425 Cannot open the data connection
			C PASV
			S 227 Entering Passive Mode (10,0,0,1,195,81)
			C STOR 1.jpg
			! passive data connection: ok
			! STOR of 70000 bytes: ok
			S 226 Transfer complete.
			S 421 Idle for too long, closing.
			! ended: idle`,
			`profile = "camera"`, "without QUIT, in 2"},
		{"scanner from Windows", login + `C CWD \scans\ann
			S 550 No such file or directory.
			C XMKD \scans
			S 550 That name is taken.
			! ended: closed

			` + login + `C PORT 10,0,9,5,8,1
			C STOR \scans\a.pdf
			! STOR of 5000 bytes: ok
			C QUIT`, `profile = "scanner"`, "active: the way"},
		{"camera that renames", login + `C PASV
			C STOR 1.jpg_
			! STOR of 5000 bytes: ok
			C RNFR 1.jpg_
			C RNTO 1.jpg
			C QUIT`, `profile = "camera"`, "\nIt needs, in"},
		{"camera that is not let in", `C USER d
			S 530 Passwords are not accepted in clear text from there; use AUTH TLS first.`, `tls = "optional"`, "it did not log in: do what is said below, and record it again for the rest\nSo far it needs, in"},
		{"camera that finds its directory only", login + "C TYPE I\nS 200 Type.\nC QUIT", `tls = "optional"`, "no file went through"},
		{"ten sessions that stay, and one more", login + "! has tls optional\nC PASS ***\nS 421 Too many connections for this user: at most 10.",
			"sessions = 50", "--sessions 50"},
		{"sixty of a file's fifty", login + "! has tls optional; sessions 60\nC PASS ***\nS 421 Too many connections for this user: at most 60.",
			"sessions = 120", "PASS (421 Too many"},
		{"one whose file has sessions enough by now", login + "! has tls optional; sessions 61\nC PASS ***\nS 421 Too many connections for this user: at most 60.",
			"", "So far it needs nothing"},
		{"control in TLS and files in clear", "! TLS 1.3\n" + login + `C PROT C
			C STOR a.bin
			S 521 Your files travel encrypted only; use PROT P.
			C QUIT`, `profile = "scanner"`, "TLS 1.3"},
		{"time of a file by its path in Windows", login + "! has tls optional\nC MDTM \\a.bin\nS 550 Missing", `quirks = ["backslash"]`, "MDTM"},
		{"active mode that a network's profile takes away", login + "! has network strict; tls optional\nC PORT 10,0,0,1,8,1\nS 502 PORT is not\nC QUIT", "quirks = []", "berth user set d --quirks '',"},
		{"camera that has filled its quota", login + "! has tls optional\nC STOR 1.jpg\n! STOR of 9 bytes: quota\nS 552 Your quota", "", "--when-full rotate"},
		{"PLC", "! lines end with LF alone\n" + login + `C ALLO 4096
			S 200 OK.
			C PASV
			C STOR log.csv
			! passive data connection: ok
			! STOR of 100 bytes: short
			S 426 Only 100 of the 4096 bytes that ALLO announced arrived; resume with REST 100.
			C PASV
			C STOR log.csv
			! STOR of 100 bytes: client_gone
			! ended: closed`,
			`profile = "scanner"
quirks = ["mkd-exists-ok", "backslash", "ignore-allo", "hang-up", "site-umask"]`, "LF alone"},
		{"old TLS", `! connected from 10.0.9.4, ftp
			C AUTH TLS
			S 234 Go on with TLS.
			! TLS failed: it offers TLS 1.1 or older
			! ended: tls

			` + login + `C SITE UMASK 022
			S 504 SITE HELP lists what is known.
			C STOR a.tif`, `profile = "scanner"`, "update its firmware"},
		{"curl with TLS", `C AUTH SSL
			S 234 Go on with TLS.
			! TLS 1.3
			` + login + `C PBSZ 0
			C PROT P
			C PWD
			C EPSV
			S 229 Entering Extended Passive Mode (|||50001|)
			C TYPE I
			C STOR x
			! passive data connection: ok
			! STOR of 10 bytes: ok
			C QUIT
			! ended: ok`, `profile = "strict"`, "TLS 1.3"},
		{"lftp that mirrors both ways", "C FEAT\n! TLS 1.3\n" + login + `C PASV
			C MLSD
			! passive data connection: ok
			C RETR x
			! RETR of 1 bytes: ok
			C DELE x
			C QUIT`, ``, "It needs no profile and no quirk."},
		{"ftp.exe", "C opts utf8 on\nS 501 OPTS\n" + login + `C PORT 10,0,9,5,8,1
			C NLST
			C RETR a
			C QUIT`, `tls = "optional"`, "active"},
		{"camera that has its profile", login + "! has profile camera; no other key of a profile\n" + `C PASV
			C STOR a.jpg_
			! STOR of 70000 bytes: ok
			C RNFR a.jpg_
			C RNTO a.jpg
			C QUIT`, ``, "It needs nothing that it has not already."},
		{"one that its network's profile serves", login + "! has network scanner; no other key of a profile\n" + `C PASV
			C STOR \a.jpg
			! STOR of 1 bytes: ok`, ``, "It needs nothing that it has not already.\nThe profile camera fits what it does, too: berth user set d --profile camera"},
		{"scanner with the camera's profile", login + "! has profile camera; no other key of a profile\n" + `C MKD \a
			S 550 That name is taken.
			C QUIT`, `quirks = ["no-epsv", "mkd-exists-ok", "backslash", "keep-open", "site-umask"]`, "camera, which it has"},
		{"camera that the strict profile keeps out", "C USER d\n! has profile strict; no other key of a profile\n" + `S 530 Passwords are not accepted in clear text from there; use AUTH TLS first.
			! ended: closed`, `tls = "optional"`, "incomplete"},
		{"one whose file says less than its profile", login + "! has profile camera; tls required; permissions write; quirks \n" + `C PASV
			C STOR a.jpg
			C SITE UMASK 022
			S 504 SITE HELP lists what is known.
			C NLST
			C QUIT`, "tls = \"optional\"\npermissions = [\"write\", \"list\"]", "camera, which it has"},
		{"test button that deletes", login + `C PASV
			C STOR test.jpg
			C DELE test.jpg
			S 250 Gone.
			C QUIT`, "profile = \"camera\"\npermissions = [\"write\", \"delete\", \"list\", \"rename\", \"mkdir\"]", "--permissions write,delete,list,rename,mkdir"},
		{"camera for which EPSV works", login + `C EPSV
			S 229 Entering Extended Passive Mode (|||50001|)
			C STOR a.jpg
			! passive data connection: ok
			! STOR of 10 bytes: ok
			C QUIT`, "profile = \"camera\"\nquirks = [\"keep-open\", \"site-umask\"]", "passive"},
		{"camera that has nothing but EPSV", login + "! has profile camera; no other key of a profile\n" + `C EPSV
			S 502 EPSV is not available here; HELP lists what is.
			! ended: closed`, "quirks = [\"keep-open\", \"site-umask\"]", "it hung up"},
		{"ALLO without a number", login + `C ALLO
			S 501 Usage: ALLO BYTES
			C QUIT`, "tls = \"optional\"\nquirks = [\"ignore-allo\"]", "incomplete"},
		{"a password typed as a name", "C USER ***\nS 331 Password required.\nC PASS ***\nS 530 Login incorrect.", "", "it may be a password"},
		{"MKD that is survived", login + `C MKD a
			S 550 That name is taken.
			C CWD a
			C PASV
			C STOR a.jpg
			C QUIT`, `profile = "camera"`, "then CWD"},
	} {
		f := readDialogue(dialogue(tt.lines))
		var keys []string
		for _, k := range f.keys() {
			keys = append(keys, k[0]+" = "+k[1])
		}
		if got := strings.Join(keys, "\n"); got != tt.keys {
			t.Errorf("%s needs\n%s\nwant\n%s\n%s", tt.device, got, tt.keys, f.report())
		}
		if _, errs := parseUserFile("d.toml", "d", []byte(strings.Join(keys, "\n")), testUsersDir, testStateDir); len(errs) > 0 {
			t.Errorf("%s: %v", tt.device, errs)
		}
		file := filepath.Join(t.TempDir(), "d.dialogue")
		if err := os.WriteFile(file, []byte(dialogue(tt.lines)), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, out, errs := cli(t, "learn", "d", "--read", file); code != exitOK || !strings.Contains(out, tt.says) {
			t.Errorf("%s: exit %d, no %q in %s%s", tt.device, code, tt.says, out, errs)
		}
	}
}

func TestRecordingsHaveNoSecrets(t *testing.T) {
	for line, want := range map[string]string{
		"PASS secret": "PASS ***", "pass secret": "pass ***", "ACCT secret": "ACCT ***", "ADAT secret": "ADAT ***", "PASS": "PASS",
		"PASSWORD secret": "***", "secret": "***", "FOO secret": "FOO ***", "SITE EXEC x secret": "SITE EXEC ***", "SITE SAY secret": "SITE SAY ***",
		"SITE PSWD secret": "SITE ***", "1234": "***", "s3c": "***", "NOPE": "NOPE", "SITE CHMOD 600 a": "SITE CHMOD 600 a", "STOR a b": "STOR a b", "AUTH TLS": "AUTH TLS", "LPRT 6,1": "LPRT ***",
	} {
		if got := unsecret(line); got != want {
			t.Errorf("%q is written down as %q; want %q", line, got, want)
		}
	}
}

// TestLearnRecordsRealClients has curl, lftp and busybox say what they do to a daemon that
// does not know their user at first.
func TestLearnRecordsRealClients(t *testing.T) {
	file, b := writeConfig(t, fmt.Sprintf("log.format = \"json\"\nlisten = { control = [\"127.0.0.1:0\"], datagram = [], http = [], local = [%q] }\n", filepath.Join(shortDir(t), "s")))
	p := serveBerth(t, file, nil)
	host, port, _ := net.SplitHostPort(p.addrs["control"])
	dir := t.TempDir()
	out := filepath.Join(dir, "cam.dialogue")
	learn := exec.Command(os.Args[0], "learn", "cam", "--config", file, "--output", out)
	learn.Env = append(os.Environ(), asBerth+"=1")
	said := &syncBuffer{}
	learn.Stdout, learn.Stderr = said, said
	if err := learn.Start(); err != nil {
		t.Fatal(err)
	}
	until := func(what string) {
		t.Helper()
		for end := time.Now().Add(replyTime); !strings.Contains(said.String(), what); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("no %q in\n%s", what, said)
			}
		}
	}
	p.logged("recording")
	drainLog(p)
	says(t, exitFailed, "", "berth learn: That name is being recorded already.\n", "learn", "cam", "--config", file, "--output", out+"2")
	c := p.dial("control")
	c.want("220 *")
	c.cmd("USER cam", "331 *")
	c.cmd("PASS hunter2", "530 *")
	c.cmd("HUNTER2", "500 *")
	c.cmd("QUIT", "221 *")
	other := p.dial("control").login()
	other.cmd("MKD annsown", "257 *")
	b.user(t, "cam", fmt.Sprintf("home = %q\n", t.TempDir()))
	ran := 0
	for _, client := range [][]string{
		{"curl", "-sS", "--max-time", "20", "--ftp-create-dirs", "-T", file, "ftp://cam:secret@" + host + ":" + port + "/a/b/1.jpg"},
		{"lftp", "-u", "cam,secret", "-p", port, "-e", "set ssl:verify-certificate no; put " + file + " -o 2.jpg; bye", host},
		{"busybox", "ftpput", "-u", "cam", "-p", "secret", "-P", port, host, "3.jpg", file},
	} {
		if _, err := exec.LookPath(client[0]); err != nil {
			if os.Getenv("BERTH_REQUIRE_CLIENTS") == "1" {
				t.Fatal(err)
			}
			continue
		}
		if text, err := exec.Command(client[0], client[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", client, err, text)
		}
		ran++
	}
	c = p.dial("control") // one for the machines that have none of them
	c.want("220 *")
	c.cmd("USER cam", "331 *")
	c.cmd("PASS secret", "230 *")
	c.cmd(`CWD \a`, "550 *")
	c.cmd("QUIT", "221 *")
	until(`C CWD \a`)
	until("221 Goodbye.")
	learn.Process.Signal(syscall.SIGINT)
	if err := learn.Wait(); err != nil {
		t.Errorf("after Ctrl-C: %v", err)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	for _, text := range []string{string(data), said.String()} {
		for _, no := range []string{"hunter2", "HUNTER2", "secret", "annsown", "USER ann"} {
			if strings.Contains(text, no) {
				t.Errorf("%q is in\n%s", no, text)
			}
		}
	}
	f := readDialogue(string(data))
	if f.uploads != ran || f.sessions < 2+ran || !f.loginFailed || f.quirks&quirkBackslash == 0 || f.quirks&(quirkMkdExists|quirkNoEPSV|quirkHangUp) != 0 {
		t.Errorf("%d clients ran; %+v in\n%s", ran, f, data)
	}
	if !strings.Contains(said.String(), "That is: berth user set cam --") && ran > 0 {
		t.Errorf("no advice in\n%s", said)
	}
	// A name that nobody has is not written down: it may be a password in the wrong field.
	said = &syncBuffer{}
	learn = exec.Command(os.Args[0], "learn", "gate", "--from", host, "--config", file, "--output", out)
	learn.Env = append(os.Environ(), asBerth+"=1")
	learn.Stdout, learn.Stderr = said, said
	if err := learn.Start(); err != nil {
		t.Fatal(err)
	}
	until("recording gate")
	if again, err := os.ReadFile(out); err != nil || string(again) != string(data) {
		t.Errorf("a recording that has heard nothing yet has changed the older one: %v", err)
	}
	c = p.dial("control")
	c.want("220 *")
	c.cmd("USER hunter2", "331 *")
	c.cmd("USER gate", "331 *")
	c.cmd("USER cam", "331 *")
	c.cmd("QUIT", "221 *")
	until("221 Goodbye.")
	learn.Process.Signal(syscall.SIGINT)
	if err := learn.Wait(); err != nil {
		t.Errorf("after Ctrl-C: %v", err)
	}
	if text := said.String(); strings.Contains(text, "hunter2") || !strings.Contains(text, "C USER ***\n") || !strings.Contains(text, "C USER gate\n") ||
		!strings.Contains(text, "C USER cam\n") || !strings.Contains(text, "! has no other key of a profile\n") {
		t.Errorf("with --from:\n%s", text)
	}
}

// TestLearnSaysWhatIsWrong, and leaves no file where there is nothing to write.
func TestLearnSaysWhatIsWrong(t *testing.T) {
	file, _ := writeConfig(t, "log.format = \"json\"\nlisten = { control = [], datagram = [], http = [], local = [\""+filepath.Join(shortDir(t), "s")+"\"] }\n")
	dir := t.TempDir()
	out, link := filepath.Join(dir, "d"), filepath.Join(dir, "link")
	name := "a"
	learn := func(code int, want string, args ...string) {
		t.Helper()
		name += "a" // the daemon may not have seen yet that the one before has gone
		got, _, errs := cli(t, append([]string{"learn", "--config", file, name}, args...)...)
		if got != code || !strings.Contains(errs, want) {
			t.Errorf("%q: exit %d, %s; want %d, %s", args, got, errs, code, want)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%q has made a file", args)
		}
	}
	learn(exitNoConn, "no daemon listens there", "--output", out)
	serveBerth(t, file, nil)
	learn(exitUsage, "--for: 2h is not between 1s and 1h", "--for", "2h", "--output", out)
	learn(exitUsage, "--for: 0 is not between 1s and 1h", "--for", "0", "--output", out)
	learn(exitUsage, "is no address", "--from", "10.0.0.0/8", "--output", out)
	learn(exitFailed, "no session said USER a", "--for", "1ms", "--output", out)
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	learn(exitFailed, "is a symbolic link", "--output", link)
	for name, want := range map[string]string{"a\x1b[31m": `"a\x1b[31m" is no name for a file`, "a/b": `"a/b" is no name`, ".a": `".a" is no name`} {
		says(t, exitUsage, "", "berth learn: "+want+"*", "learn", "--config", file, name)
	}
	says(t, exitFailed, "", "berth learn: learn needs a user: the name that the device logs in with, of at most 64 bytes.\n", "learn", "--config", file, "--output", out, strings.Repeat("x", 65))
}

// TestLearnWritesOnlyIntoItsOwn: what somebody else reads, or has another name for, stays as it
// is, and so does what is no file.
func TestLearnWritesOnlyIntoItsOwn(t *testing.T) {
	dir := t.TempDir()
	pipe, kept, other, foreign := filepath.Join(dir, "pipe"), filepath.Join(dir, "kept"), filepath.Join(dir, "other"), filepath.Join(dir, "foreign")
	if err := errors.Join(syscall.Mkfifo(pipe, 0o644), os.WriteFile(kept, []byte("kept"), 0o644), os.Link(kept, other)); err != nil {
		t.Fatal(err)
	}
	all := []string{pipe, other, "/dev/null"}
	if os.Geteuid() == 0 {
		if err := errors.Join(os.WriteFile(foreign, nil, 0o644), os.Chown(foreign, 1, 1)); err != nil {
			t.Fatal(err)
		}
		all = append(all, foreign)
	}
	for _, file := range all {
		f, err := openDialogue(file)
		if err == nil {
			f.Close()
		}
		if err == nil || !strings.Contains(err.Error(), file+" is there already, and is not a file that only uid") {
			t.Errorf("%s: %v", file, err)
		}
	}
	if f, err := openDialogue(filepath.Join(dir, "new")); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
}

// TestLearnTellsDevicesOfOneAddressApart, as those behind one router: each recording has its own
// device, with where it came from.
func TestLearnTellsDevicesOfOneAddressApart(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		ls, names := &b.srv.lessons, []string{"one", "two", "one"}
		heard := map[string]*lesson{}
		for _, name := range names[:2] {
			l, err := ls.begin(name, netip.Addr{})
			if err != nil {
				t.Fatal(err)
			}
			defer ls.end(l)
			heard[name] = l
		}
		for _, name := range names {
			c := b.dial(t)
			c.want("220 *")
			c.cmd("USER "+name, "331 *")
			c.cmd("QUIT", "221 *")
			synctest.Wait()
		}
		for name, l := range heard {
			lines, _ := ls.fetch(l)
			if f := readDialogue(string(lines)); !slices.Equal(f.names, []string{name}) || !slices.Equal(f.from, []string{testPeer.String()}) {
				t.Errorf("of %s:\n%s", name, lines)
			}
		}
	})
}

// TestLearnTellsWhatWasHeardWhenTheDaemonEnds: a crash costs no recording.
func TestLearnTellsWhatWasHeardWhenTheDaemonEnds(t *testing.T) {
	file, _ := writeConfig(t, fmt.Sprintf("log.format = \"json\"\nlisten = { control = [\"127.0.0.1:0\"], datagram = [], http = [], local = [%q] }\n", filepath.Join(shortDir(t), "s")))
	p := serveBerth(t, file, nil)
	into := filepath.Join(t.TempDir(), "d")
	var code int
	var out string
	over := make(chan bool)
	go func() {
		defer close(over)
		code, out, _ = cli(t, "learn", "cam", "--config", file, "--output", into)
	}()
	p.logged("recording")
	drainLog(p)
	c := p.dial("control")
	c.want("220 *")
	c.cmd("USER cam", "331 *")
	c.cmd("QUIT", "221 *")
	for end := time.Now().Add(replyTime); ; time.Sleep(5 * time.Millisecond) {
		if data, _ := os.ReadFile(into); strings.Contains(string(data), "221 Goodbye.") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing is recorded")
		}
	}
	p.cmd.Process.Kill()
	select {
	case <-over:
		if code == exitOK || !strings.Contains(out, "\ncam:\n") {
			t.Errorf("exit %d: %s", code, out)
		}
	case <-time.After(replyTime):
		t.Fatal("it waits for a daemon that has gone")
	}
}

// FuzzLearn: whatever was recorded, or was said by a device, gives advice that berth itself
// takes, in lines that do no harm to a terminal, and no password is in it.
func FuzzLearn(f *testing.F) {
	f.Add("C USER d\nS 331 x\nC PASS ***\nS 230 y\nC STOR a.jpg\n! STOR of 10 bytes: client_gone\n! ended: closed", "PASS", "secret")
	f.Add("! has profile strict; network camera; tls always\nC MKD \\\\\nS 550 taken\nC QUIT", "SITE", "EXEC x")
	f.Add("S \nC \nS 5\nC SITE\nC XMKD\nS 999999999999\n! STOR of -1 bytes: ok\n! TLS 1\n\n! has ", "", "")
	f.Fuzz(func(t *testing.T, lines, verb, arg string) {
		for _, text := range []string{lines, dialogue(lines)} {
			found := readDialogue(text)
			if len(found.refused) > maxRefused || len(found.verbs) > maxLearned || len(found.names) > maxLearned {
				t.Errorf("no bound: %+v", found)
			}
			report := shownLines(found.report())
			if strings.ContainsFunc(report, func(r rune) bool { return r < ' ' && r != '\n' }) {
				t.Errorf("%q", report)
			}
			toml := ""
			for _, k := range found.keys() {
				toml += k[0] + " = " + k[1] + "\n"
			}
			if _, errs := parseUserFile("d.toml", "d", []byte(toml), testUsersDir, testStateDir); len(errs) > 0 {
				t.Errorf("%v in\n%s", errs, toml)
			}
		}
		if verb, _, _ := strings.Cut(verb, " "); !openVerb(upperASCII(verb)) && upperASCII(verb) != "SITE" && len(arg) > 4 && strings.Trim(arg, "*") != "" {
			if got := unsecret(verb + " " + arg); strings.Contains(got, arg) && !strings.Contains(verb, arg) {
				t.Errorf("%q %q is written down as %q", verb, arg, got)
			}
		}
	})
}
