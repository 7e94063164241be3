package main

// What an attacker tries: clients that disconnect in every state, lie, stall or ask for
// more than their share, and names that lead to what is not theirs. Each test was a fault
// once, or is the proof that a whole class of them is not there. The rules of the protocol
// and of each verb are played elsewhere; here it is only about harm to others.

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// attackDescriptors counts this process's own.
func attackDescriptors(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(names)
}

// attackListen is the configuration of a server that random clients are let loose on:
// real sockets, plain and TLS, and little patience.
const attackListen = "limits.data_timeout = \"2s\"\nlimits.sessions_per_address = 500\nserver.drain = \"5s\"\ntransfer.durable = false\ntransfer.mode_z = true\nlisten = { control = [\"127.0.0.1:0\"], tls = [\"127.0.0.1:0\"], datagram = [], http = [], local = [] }\n"

// TestAttackRandomDisconnects: however clients end, with or without TLS, in the middle of
// a handshake, a command or a transfer, nothing of them is left. ATTACK_SESSIONS sets how
// many sessions each of 16 clients runs; under -race it is a search for data races too.
func TestAttackRandomDisconnects(t *testing.T) {
	const workers = 16
	each := 3
	if n := os.Getenv("ATTACK_SESSIONS"); n != "" {
		fmt.Sscan(n, &each)
	}
	b := newFTPBox(t, attackListen, "sessions = 400\ndownload_rate = \"200MiB\"\n")
	b.put(t, "big", strings.Repeat("0123456789abcdef", 1<<16))
	b.put(t, "small", "small")
	for i := range 300 {
		b.put(t, fmt.Sprintf("d/file with a rather long name to fill lines %d", i), "")
	}
	addrs := b.serveReal(t)
	fds, routines := attackDescriptors(t), runtime.NumGoroutine()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(w)))
			for range each {
				attackSession(rnd, addrs[0].String(), addrs[1].String())
			}
		})
	}
	wg.Wait()
	const nothing = "sessions 0 addresses 0 accounts 0 jails 0 tls 0 busy 0 splices 0 hashing 0 gauge 0 transfers 0 panics 0 fds +0 goroutines +0"
	end := time.Now().Add(30 * time.Second)
	var state string
	for time.Now().Before(end) {
		b.srv.mu.Lock()
		b.srv.jails.mu.Lock()
		b.srv.keys.mu.Lock()
		state = fmt.Sprintf("sessions %d addresses %d accounts %d jails %d tls %d busy %d splices %d hashing %d gauge %v transfers %v panics %v",
			len(b.srv.sessions), len(b.srv.byAddr), len(b.srv.accounts), len(b.srv.jails.open), len(b.srv.keys.live), b.srv.quick.busy.Load(), b.srv.splices.n.Load(), len(b.srv.hashing),
			b.metric(t, "berth_sessions"), b.metric(t, "berth_transfers_active"), b.metric(t, "berth_panics_total"))
		b.srv.keys.mu.Unlock()
		b.srv.jails.mu.Unlock()
		b.srv.mu.Unlock()
		state += fmt.Sprintf(" fds %+d goroutines %+d", max(0, attackDescriptors(t)-fds), max(0, runtime.NumGoroutine()-routines))
		if state == nothing {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if state != nothing {
		buf := make([]byte, 1<<20)
		t.Errorf("left over: %s\n%s", state, buf[:runtime.Stack(buf, true)])
	}
	if strings.Contains(b.log.String(), "panic") || strings.Contains(b.log.String(), "local error") {
		for l := range strings.SplitSeq(b.log.String(), "\n") {
			if strings.Contains(l, "panic") || strings.Contains(l, "local error") {
				t.Error(l)
			}
		}
	}
	for _, d := range []string{"", "d"} {
		names, _ := os.ReadDir(filepath.Join(b.home, d))
		for _, n := range names {
			if strings.HasPrefix(n.Name(), stagePrefix) {
				t.Errorf("staging file %s stays", n.Name())
			}
		}
	}
}

// attackSession is one client that does what rnd says and goes when rnd says so.
func attackSession(rnd *rand.Rand, plain, implicit string) {
	secret := rnd.IntN(4) == 0
	addr := plain
	if secret && rnd.IntN(2) == 0 {
		addr = implicit
	}
	bare, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer bare.Close()
	if rnd.IntN(2) == 0 {
		defer bare.(*net.TCPConn).SetLinger(0)
	}
	quit := func() bool { return rnd.IntN(25) == 0 }
	conn := bare
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if quit() {
		return
	}
	if addr == implicit {
		c := tls.Client(bare, clientTLS())
		if rnd.IntN(6) == 0 {
			bare.Write([]byte("\x16\x03\x01\x02\x00\x01"))
			return
		}
		if c.Handshake() != nil {
			return
		}
		conn = c
	}
	r := bufio.NewReader(conn)
	reply := func() string {
		for {
			l, err := r.ReadString('\n')
			if err != nil {
				return ""
			}
			if len(l) > 4 && l[3] == ' ' && l[0] != ' ' {
				return l
			}
		}
	}
	cmd := func(s string) string {
		if quit() {
			return ""
		}
		if _, err := io.WriteString(conn, s+"\r\n"); err != nil {
			return ""
		}
		if quit() {
			return ""
		}
		return reply()
	}
	if reply() == "" {
		return
	}
	if secret && addr == plain {
		if !strings.HasPrefix(cmd("AUTH TLS"), "234") {
			return
		}
		if rnd.IntN(6) == 0 {
			return
		}
		c := tls.Client(bare, clientTLS())
		if c.Handshake() != nil {
			return
		}
		conn = c
		r = bufio.NewReader(conn)
	}
	if cmd("USER ann") == "" || cmd("PASS secret") == "" {
		return
	}
	if secret && (cmd("PBSZ 0") == "" || cmd("PROT P") == "") {
		return
	}
	for range 8 {
		if rnd.IntN(5) == 0 {
			c := []string{"REIN", "USER ann", "HASH big", "XSHA512 big", "STAT d", "SITE WHO", "MLST small", "NLST d/*", "MODE Z", "MODE S", "REST 5", "STAT", "SITE SAY x", "RNFR small", "ABOR", "TYPE A", "TYPE I"}
			v := c[rnd.IntN(len(c))]
			if cmd(v) == "" {
				return
			}
			if v == "REIN" || v == "USER ann" {
				if cmd("USER ann") == "" || cmd("PASS secret") == "" {
					return
				}
			}
			continue
		}
		var ln net.Listener
		port := 0
		if rnd.IntN(4) == 0 {
			ln, err = net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return
			}
			if rnd.IntN(5) == 0 {
				ln.Close()
			} else {
				defer ln.Close()
			}
			p := ln.Addr().(*net.TCPAddr).Port
			if cmd(fmt.Sprintf("PORT 127,0,0,1,%d,%d", p>>8, p&255)) == "" {
				return
			}
		} else {
			l := cmd("EPSV")
			if i := strings.Index(l, "|||"); i > 0 {
				fmt.Sscanf(l[i:], "|||%d|", &port)
			} else {
				return
			}
		}
		var d net.Conn
		if port != 0 && rnd.IntN(2) == 0 {
			if d, err = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
				return
			}
			defer d.Close()
		}
		verbs := []string{"RETR big", "STOR up" + fmt.Sprint(rnd.IntN(4)), "LIST d", "MLSD", "NLST d/*", "APPE up1", "STOU", "RETR small"}
		verb := verbs[rnd.IntN(len(verbs))]
		if _, err := io.WriteString(conn, verb+"\r\n"); err != nil || quit() {
			return
		}
		if port != 0 && d == nil {
			if rnd.IntN(5) == 0 {
				if rnd.IntN(2) == 0 {
					io.WriteString(conn, "ABOR\r\n")
				}
				if quit() {
					return
				}
				reply()
				continue
			}
			if d, err = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
				return
			}
			defer d.Close()
		}
		if ln != nil {
			ln.(*net.TCPListener).SetDeadline(time.Now().Add(time.Second))
			if d, err = ln.Accept(); err != nil {
				if reply() == "" {
					return
				}
				continue
			}
			defer d.Close()
		}
		if !strings.HasPrefix(reply(), "150") {
			continue
		}
		if quit() {
			return
		}
		raw := d
		raw.SetDeadline(time.Now().Add(5 * time.Second))
		if secret {
			if rnd.IntN(8) == 0 {
				raw.Close()
				if reply() == "" {
					return
				}
				continue
			}
			c := tls.Client(d, clientTLS())
			if c.Handshake() != nil {
				return
			}
			d = c
		}
		if rnd.IntN(3) == 0 {
			raw.(*net.TCPConn).SetLinger(0)
		}
		if verb[0] == 'S' || verb[0] == 'A' {
			for range rnd.IntN(5) {
				d.Write(make([]byte, rnd.IntN(200<<10)))
			}
		} else if rnd.IntN(3) > 0 {
			io.CopyN(io.Discard, d, int64(rnd.IntN(2<<20)))
		} else {
			time.Sleep(time.Duration(rnd.IntN(150)) * time.Millisecond)
		}
		if quit() {
			return
		}
		switch rnd.IntN(4) {
		case 0:
			io.WriteString(conn, "ABOR\r\n")
			if reply() == "" {
				return
			}
		case 1:
			io.WriteString(conn, "STAT\r\nNOOP\r\n")
		}
		if quit() {
			return
		}
		d.Close()
		if reply() == "" {
			return
		}
	}
	cmd("QUIT")
}

// TestAttackLimiterWhileLoggingIn: a login sets the limits that the user's running
// sessions read. It fails under -race only.
func TestAttackLimiterWhileLoggingIn(t *testing.T) {
	b := newFTPBox(t, "", "download_rate = \"1MiB\"\nsessions = 100\n")
	u := b.srv.users.get("ann")
	first, err := b.srv.enter(u)
	if err != nil {
		t.Fatal(err)
	}
	s := &session{srv: b.srv, account: first}
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 100 {
			if second, err := b.srv.enter(u); err == nil {
				b.srv.leave(second)
			}
		}
	})
	for range 100 {
		s.limiterFor(false)
		s.limiterFor(true)
	}
	wg.Wait()
	b.srv.leave(first)
}

// TestAttackLateWatcher: the timer of a transfer that is over must not set a second
// reader on the control connection of the one that runs now.
func TestAttackLateWatcher(t *testing.T) {
	b := newFTPBox(t, "", "")
	client, conn := memPipe(netip.AddrPortFrom(testPeer, 40000), netip.AddrPortFrom(testLocal, 21))
	client.Close() // so that a reader would return
	s := &session{srv: b.srv, conn: conn, bare: conn}
	over, now := newTransfer(0, nil), newTransfer(0, nil)
	s.xfer = now
	s.startWatch(over)
	if s.watching != nil {
		t.Error("a second watcher")
	}
}

// TestAttackREIN: no command that a stranger may send gives him more time.
func TestAttackREIN(t *testing.T) {
	inBox(t, "limits.login_timeout = \"1m\"\n", "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t)
		c.want("220 *")
		start := time.Now()
		for time.Since(start) < 3*time.Minute {
			time.Sleep(20 * time.Second)
			io.WriteString(c.conn, "REIN\r\n")
			if line, err := c.line(replyTime); err != nil || strings.HasPrefix(line, "421") {
				break
			}
		}
		if d := time.Since(start); d > 61*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

// TestAttackSecondLogin: who was let in and logs out, by REIN, USER or AUTH, has the
// login time once more, however long he has been here.
func TestAttackSecondLogin(t *testing.T) {
	inBox(t, "limits.login_timeout = \"1m\"\n", "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t).login()
		time.Sleep(5 * time.Minute)
		c.cmd("USER ann", "331 *")
		time.Sleep(50 * time.Second)
		c.cmd("PASS secret", "230 *")
		time.Sleep(5 * time.Minute)
		c.cmd("REIN", "220 *")
		c.cmd("USER ann", "331 *")
		c.cmd("PASS secret", "230 *")
		time.Sleep(5 * time.Minute)
		c.cmd("AUTH TLS", "234 *")
		c.startTLS(clientTLS())
		c.cmd("USER ann", "331 *")
		c.cmd("PASS secret", "230 *")
	})
}

// TestAttackBeforeAUTH: what was set in clear text, where somebody in the middle could
// have set it, does not hold inside TLS.
func TestAttackBeforeAUTH(t *testing.T) {
	inBox(t, "transfer.mode_z = true\ntransfer.ascii = true\n", "", func(t *testing.T, b *ftpBox) {
		c := b.dial(t)
		c.want("220 *")
		for _, line := range []string{"TYPE A", "MODE Z", "OPTS HASH MD5", "OPTS MLST size;"} {
			c.cmd(line, "200 *")
		}
		c.cmd("USER ann", "331 *")
		c.cmd("AUTH TLS", "234 *")
		c.startTLS(clientTLS())
		c.cmd("PASS secret", "503 *")
		c.cmd("OPTS HASH", "200 SHA-256")
		c.cmd("USER ann", "331 *")
		c.cmd("PASS secret", "230 *")
		const content = "one\r\ntwo\n"
		c.store("STOR a", content)
		if got := b.content(t, "a"); got != content {
			t.Errorf("%q was stored", got)
		}
	})
}

// TestAttackAnswersNobodyReads: reading TLS may write, and a client that makes it write
// and reads nothing must not outlast the time it has.
func TestAttackAnswersNobodyReads(t *testing.T) {
	inBox(t, "limits.login_timeout = \"1m\"\n", "", func(t *testing.T, b *ftpBox) {
		start := time.Now()
		c := b.dial(t)
		c.want("220 *")
		c.cmd("AUTH TLS", "234 *")
		c.startTLS(clientTLS())
		synctest.Wait() // it waits for a command
		in := c.bare.(*memConn).in
		in.mu.Lock()
		until := in.wr.at
		in.mu.Unlock()
		if until.IsZero() || until.After(start.Add(time.Minute)) {
			t.Errorf("writes may block until %v; the login time ends %v", until, start.Add(time.Minute))
		}
	})
}

// TestAttackShortLinesDuringTransfer: lines that wait are counted by what they take, not
// by what they say; also those that are too long to be kept.
func TestAttackShortLinesDuringTransfer(t *testing.T) {
	for name, line := range map[string]string{"short": "x\r\n", "too long": strings.Repeat("x", maxLine+1) + "\r\n"} {
		t.Run(name, func(t *testing.T) {
			inBox(t, "", "", func(t *testing.T, b *ftpBox) {
				c := b.dial(t).login()
				c.cmd("EPSV", "229 *")
				c.data()
				c.cmd("STOR a", "150 *")
				go io.WriteString(c.conn, strings.Repeat(line, maxPending/pendingCost+100))
				time.Sleep(10 * time.Second)
				b.srv.mu.Lock()
				var s *session
				for _, s = range b.srv.sessions {
				}
				b.srv.mu.Unlock()
				synctest.Wait()
				if n := len(s.pending); n == 0 || n > maxPending/pendingCost+1 {
					t.Errorf("%d lines wait", n)
				}
			})
		})
	}
}

// processorTime is how long this process has computed, which says what something costs on a busy machine, too.
func processorTime(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestAttackGlob: one command of a user costs moments and a few megabytes, whatever the
// pattern and the directory.
func TestAttackGlob(t *testing.T) {
	b := newFTPBox(t, "", "")
	dir := filepath.Join(b.home, "many")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("a", 240)
	for i := range 3000 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s%04d", long, i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	j, err := b.srv.jails.enter(jailSpec{user: "ann", home: b.home, shares: nil})
	if err != nil {
		t.Fatal(err)
	}
	defer b.srv.jails.leave(j)
	start := processorTime(t)
	if _, err := j.glob("/many", "*["+strings.Repeat("b-c", 1300)+"]z"); err != nil {
		t.Error(err)
	}
	if d := processorTime(t) - start; d > 5*time.Second { // a minute without a bound, under -race
		t.Errorf("a pattern took %v", d)
	}
	names, err := j.glob("/many", strings.Repeat("./", 1900)+"*")
	if err != nil {
		t.Error(err)
	}
	size := 0
	for _, name := range names {
		size += len(name)
	}
	if size > globBytes+maxPath || len(names) == 0 {
		t.Errorf("%d names of together %d bytes", len(names), size)
	}
	if names, err = j.glob("/many", "*1234"); err != nil || len(names) != 1 {
		t.Errorf("%d names, %v", len(names), err)
	}
}

// TestAttackReservedNames: no verb and no spelling reaches what the server keeps below a
// home, a demo's users among it.
func TestAttackReservedNames(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		for _, name := range []string{".berth-state", ".BERTH-STATE"} { // the second as a disk that folds case has it
			b.put(t, name+"/users.d/demo.toml", "secret hash")
		}
		b.put(t, "plain", "x")
		if err := os.Symlink("/", filepath.Join(b.home, "out")); err != nil {
			t.Fatal(err)
		}
		before := snapshot(t, b.home)
		c := b.dial(t).login()
		for _, dir := range []string{".berth-state", ".BERTH-STATE", ".Berth-State", "./.berth-state/", "plain/../.berth-state", "//.berth-state", "out" + b.home + "/.berth-state"} {
			file := dir + "/users.d/demo.toml"
			for _, verb := range []string{"CWD ", "MLST ", "STAT ", "SIZE ", "MDTM ", "HASH ", "XMD5 ", "DELE ", "RMD ", "MKD ", "RNFR ", "AVBL ",
				"MFMT 20200101000000 ", "MFF Modify=20200101000000; ", "SITE CHMOD 777 ", "SITE UTIME 20200101000000 "} {
				for _, name := range []string{dir, file, dir + "/users.d"} {
					c.send(verb + name + "\r\n")
					if code, text := c.reply(); code < 500 {
						t.Errorf("%s%s: %s", verb, name, text)
					}
				}
			}
			for _, verb := range []string{"RETR ", "STOR ", "APPE ", "STOU ", "LIST ", "MLSD ", "NLST "} {
				c.cmd("EPSV", "229 *")
				c.send(verb + file + "\r\n")
				if code, text := c.reply(); code < 500 {
					t.Errorf("%s%s: %s", verb, file, text)
				}
			}
			c.cmd("RNFR plain", "350 *")
			c.send("RNTO " + file + "\r\n")
			if code, text := c.reply(); code < 500 {
				t.Errorf("RNTO %s: %s", file, text)
			}
		}
		for _, pattern := range []string{".b*", ".*", ".[bB]*/*", "*/.b*", ".berth-state/*", "?berth-state/users.d/*", ".*/users.d/*.toml"} {
			c.cmd("EPSV", "229 *")
			c.send("NLST " + pattern + "\r\n")
			if code, text := c.reply(); code < 500 {
				t.Errorf("NLST %s: %s", pattern, text)
			}
		}
		if got := c.fetch("NLST"); got != "out\r\nplain\r\n" {
			t.Errorf("NLST tells %q", got)
		}
		if after := snapshot(t, b.home); after != before {
			t.Errorf("it was changed:\n%s\nbefore:\n%s", after, before)
		}
	})
}

// TestAttackShareRoot: the root of a share belongs to all who have it, and no one of
// them closes it to the others.
func TestAttackShareRoot(t *testing.T) {
	dir := t.TempDir()
	inBox(t, "", fmt.Sprintf("shares = { pub = { path = %q, write = true } }\n", dir), func(t *testing.T, b *ftpBox) {
		c := b.dial(t).login()
		c.cmd("MKD pub/own", "257 *")
		c.cmd("SITE CHMOD 700 pub/own", "200 *")
		for _, line := range []string{"SITE CHMOD 000 pub", "MFF UNIX.mode=0; pub", "SITE CHMOD 0 /pub/.", "RMD pub", "DELE pub"} {
			c.cmd(line, "550 *")
		}
		c.cmd("RNFR pub", "350 *")
		c.cmd("RNTO mine", "550 *")
		st, err := os.Stat(dir)
		if err != nil || st.Mode().Perm()&0o700 != 0o700 {
			t.Errorf("the share is %v, %v", st.Mode(), err)
		}
	})
}

// TestAttackGoneClientFillsNoLog: what a client piped in before it went away is no
// trouble of the server's, however often it asks for a long listing.
func TestAttackGoneClientFillsNoLog(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		for i := range 600 {
			b.put(t, fmt.Sprintf("%0100d", i), "")
		}
		c := b.dial(t).login()
		c.send(strings.Repeat("STAT .\r\n", 100))
		c.bare.Close()
		<-c.over
		if n := strings.Count(b.log.String(), "listing stopped"); n != 0 {
			t.Errorf("%d warnings", n)
		}
	})
}
