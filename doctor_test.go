package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// findingsOf is what berth doctor --json prints.
func findingsOf(t *testing.T, out string) (all []finding) {
	t.Helper()
	for line := range strings.Lines(out) {
		var f finding
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, f)
	}
	return all
}

// examine is doctor on the box with that configuration.
func examine(t *testing.T, file string, more ...string) (int, []finding) {
	t.Helper()
	code, out, errs := cli(t, append([]string{"doctor", "--json", "--config", file}, more...)...)
	if errs != "" {
		t.Errorf("doctor: %s", errs)
	}
	return code, findingsOf(t, out)
}

// the finding of a check that is not ok and has this in its text, or nil.
func the(all []finding, check, text string) *finding {
	for i := range all {
		if f := &all[i]; f.Check == check && f.Level != "ok" && strings.Contains(f.Text, text) {
			return f
		}
	}
	return nil
}

// remedy does what a line of a finding says: it changes the configuration, or is a
// command of the shell.
func remedy(t *testing.T, file, line string) {
	t.Helper()
	setting, where, ok := strings.Cut(strings.TrimPrefix(line, "or: "), "   in ")
	if !ok || !strings.HasPrefix(where, file) {
		if words, ok := strings.CutPrefix(line, "berth "); ok {
			if code, out, errs := cli(t, strings.Fields(words)...); code != exitOK {
				t.Fatalf("%s: %d, %s%s", line, code, out, errs)
			}
			return
		}
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
		return
	}
	key, _, _ := strings.Cut(setting, " ")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(data), "\n")
	if n := lineOf(data, key); n > 0 && strings.HasPrefix(lines[n-1], key) {
		if !strings.HasSuffix(where, fmt.Sprintf("line %d", n)) {
			t.Errorf("%s is in line %d", line, n)
		}
		lines[n-1] = setting
	} else {
		lines = append([]string{setting}, lines...)
	}
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// nobodys gives the state directory to another user, as whom the daemon would run; who
// is not root takes his own rights away.
func nobodys(t *testing.T, path string) {
	t.Helper()
	err := os.Chmod(path, 0o700)
	if os.Geteuid() == 0 && err == nil {
		err = os.Chown(path, 65534, 65534)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// signedCertificate writes a certificate of an authority's, with it behind, and its key.
func signedCertificate(t *testing.T, dir string, notAfter time.Time, change func(chain [][]byte) [][]byte) (cert, key string) {
	t.Helper()
	make := func(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if signer == nil {
			signer = k
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &k.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		return der, k
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: tlsEpoch(), NotAfter: time.Now().Add(1000 * time.Hour)}
	caDER, caKey := make(ca, ca, nil)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "elsewhere"}, DNSNames: []string{"elsewhere.example"},
		NotBefore: tlsEpoch(), NotAfter: notAfter}
	leafDER, leafKey := make(leaf, ca, caKey)
	chain := [][]byte{leafDER, caDER}
	if change != nil {
		chain = change(chain)
	}
	var text []byte
	for _, der := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, data := range map[string][]byte{cert: text, key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

const nowhere = "listen = { control = [\"127.0.0.1:0\"], datagram = [], http = [], local = [] }\n"

// TestDoctorFindsAndMends breaks one thing at a time. Each is found with its remedy, and
// is gone when the remedy's first line was done to the letter.
func TestDoctorFindsAndMends(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	_, port, _ := net.SplitHostPort(busy.Addr().String())
	for _, c := range []struct {
		name, more   string
		spoil        func(t *testing.T, b *ftpBox)
		check, level string
		text         string
		remedy       string // of which the first line is done
		code         int
	}{
		{name: "state directory closed", spoil: func(t *testing.T, b *ftpBox) {
			nobodys(t, filepath.Join(b.dir, "state"))
			os.Chmod(filepath.Join(b.dir, "state"), 0o500)
		}, check: "state_dir", level: "fail", text: "may not read and write there", remedy: "chmod u+rwx ", code: exitFailed},
		{name: "home of another", spoil: func(t *testing.T, b *ftpBox) {
			nobodys(t, filepath.Join(b.dir, "state"))
			os.Chmod(b.home, 0o555)
		}, check: "home", level: "fail", text: "user ann, ", remedy: "ch", code: exitFailed},
		{name: "home below a closed directory", more: "", spoil: func(t *testing.T, b *ftpBox) {
			nobodys(t, filepath.Join(b.dir, "state"))
			closed := filepath.Join(b.dir, "closed")
			os.MkdirAll(filepath.Join(closed, "ann"), 0o755)
			os.Chmod(filepath.Join(closed, "ann"), 0o777)
			b.user(t, "ann", fmt.Sprintf("home = %q\n", filepath.Join(closed, "ann")))
			if os.Geteuid() == 0 {
				os.Chmod(closed, 0o700)
			} else {
				os.Chmod(filepath.Join(closed, "ann"), 0o500)
			}
		}, check: "home", level: "fail", text: "permission denied", remedy: "chmod ", code: exitFailed},
		{name: "user file open to all", spoil: func(t *testing.T, b *ftpBox) { os.Chmod(filepath.Join(b.dir, "users.d/ann.toml"), 0o644) },
			check: "users.mode", level: "fail", text: "everybody", remedy: "chmod o=,g-w ", code: exitFailed},
		{name: "user file that all may change", spoil: func(t *testing.T, b *ftpBox) { os.Chmod(filepath.Join(b.dir, "users.d/ann.toml"), 0o666) },
			check: "users", level: "fail", text: "lets anyone", remedy: "chmod 600 /", code: exitFailed},
		{name: "directory of the local socket closed", spoil: func(t *testing.T, b *ftpBox) {
			nobodys(t, filepath.Join(b.dir, "state"))
			os.Mkdir(filepath.Join(b.dir, "run"), 0o500)
			b.configure(t, strings.Replace(nowhere, "local = []", fmt.Sprintf("local = [%q]", filepath.Join(b.dir, "run/s")), 1))
		}, check: "port", level: "fail", text: "/run: the daemon's user ", remedy: "ch", code: exitFailed},
		{name: "users directory open to all", spoil: func(t *testing.T, b *ftpBox) { os.Chmod(filepath.Join(b.dir, "users.d"), 0o777) },
			check: "users_dir.mode", level: "warn", text: "lets others", remedy: "chmod go-w "},
		{name: "private key open to all", spoil: func(t *testing.T, b *ftpBox) { os.Chmod(filepath.Join(b.dir, "state/tls/key.pem"), 0o644) },
			check: "certificate.mode", level: "fail", text: "key.pem", remedy: "chmod o=,g-w ", code: exitFailed},
		{name: "busy port", more: "listen = { control = [\"127.0.0.1:" + port + "\"], datagram = [], http = [], local = [] }\n",
			check: "port", level: "fail", text: "is taken by ", remedy: "listen.control = [\"127.0.0.1:", code: exitFailed},
		{name: "an address of another machine", more: "listen.control = [\"192.0.2.77:2121\"]\nlisten.datagram = []\nlisten.local = []\nlisten.http = []\n",
			check: "port", level: "fail", text: "does not have the address", remedy: "listen.control = [\"[::]:2121\"]", code: exitFailed},
		{name: "busy passive ports", more: nowhere + "passive.ports = \"" + port + "\"\n",
			check: "passive.taken", level: "fail", text: "all passive ports", remedy: "passive.ports = ", code: exitFailed},
		{name: "listener among the passive ports", more: "listen.control = [\"127.0.0.1:50001\"]\nlisten.datagram = []\nlisten.local = []\nlisten.http = []\n",
			check: "passive.listen", level: "warn", text: "within the passive ports", remedy: "listen.control = "},
		{name: "passive address of IPv6", more: nowhere + "passive.address = \"2001:db8::1\"\n",
			check: "passive.address", level: "warn", text: "no room for IPv6", remedy: "passive.address = \"203.0.113.7\""},
		{name: "any passive port", more: nowhere + "passive.ports = \"\"\n",
			check: "passive.range", level: "note", text: "any port", remedy: "passive.ports = "},
		{name: "transfer log nowhere", more: nowhere + "log.transfers = \"/dev/null/x/log\"\n",
			check: "log.transfers", level: "fail", text: "/dev/null/x"},
		{name: "no sandbox", more: nowhere + "exec.sandbox = \"off\"\ncommands.up = { run = [\"/bin/true\"] }\n", spoil: func(t *testing.T, b *ftpBox) { b.user(t, "ann", "commands = [\"up\"]\n") },
			check: "sandbox", level: "warn", text: "no sandbox", remedy: "exec.sandbox = \"landlock\""},
		{name: "no runner", more: nowhere + "exec.runner = \"unix:/nonexistent/runner.sock\"\n", spoil: func(t *testing.T, b *ftpBox) { b.user(t, "ann", "shell = true\n") },
			check: "runner", level: "fail", text: "/nonexistent/runner.sock", code: exitFailed},
		{name: "quota larger than the disk", spoil: func(t *testing.T, b *ftpBox) { b.user(t, "ann", "quota_bytes = \"4096TiB\"\n") },
			check: "quota.size", level: "warn", text: "more than the whole disk", remedy: "berth user set ann --quota "},
		{name: "a value of another kind", more: nowhere + "limits.idle = 10\n", check: "config", level: "fail", text: "limits.idle", code: exitFailed},
		{name: "a user with a mistake", spoil: func(t *testing.T, b *ftpBox) { b.user(t, "bob", "sesions = 3\n") },
			check: "users", level: "fail", text: "bob.toml:3", code: exitFailed},
		{name: "rotation without quota", spoil: func(t *testing.T, b *ftpBox) { b.user(t, "ann", "when_full = \"rotate\"\n") },
			check: "users.rotate", level: "note", text: "does nothing", remedy: "berth user set ann --quota 2GiB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.more == "" {
				c.more = nowhere
			}
			file, b := writeConfig(t, c.more)
			os.Chmod(filepath.Dir(b.dir), 0o755) // the test's directory is for root alone
			if c.name == "transfer log nowhere" {
				c.code = exitFailed
			}
			_, before := examine(t, file)
			if c.spoil != nil {
				if the(before, c.check, c.text) != nil {
					t.Fatal("it is found before it was spoilt")
				}
				c.spoil(t, b)
			}
			code, all := examine(t, file)
			f := the(all, c.check, c.text)
			if f == nil || f.Level != c.level || code != c.code {
				t.Fatalf("exit code %d, %+v; want %d and a %s of %s with %q", code, all, c.code, c.level, c.check, c.text)
			}
			if len(f.Remedy) == 0 || !strings.HasPrefix(f.Remedy[0], c.remedy) {
				t.Fatalf("%+v: the remedy is not %q", f, c.remedy)
			}
			if c.remedy == "" {
				return
			}
			remedy(t, file, f.Remedy[0])
			if _, after := examine(t, file); the(after, c.check, c.text) != nil {
				t.Errorf("after %q it is still found: %+v", f.Remedy[0], the(after, c.check, c.text))
			}
		})
	}
}

// A box without faults has none; people read lines, with the remedy below, and a heading
// for each group.
func TestDoctorOfAGoodBox(t *testing.T) {
	file, _ := writeConfig(t, nowhere)
	code, out, errs := cli(t, "doctor", "--config", file)
	if code != exitOK || errs != "" || !strings.HasPrefix(out, "configuration\n  ok    "+file+" is right, with 1 user\n") || strings.Contains(out, "FAIL") {
		t.Errorf("%d, %s%s", code, out, errs)
	}
	if !wildcard("*\n\n* ok, * note*, * warning*, 0 failures\n", out) {
		t.Errorf("no summary: %s", out)
	}
	if code, _, errs := cli(t, "doctor", "--write"); code != exitUsage || !strings.Contains(errs, "--write is for another box") {
		t.Errorf("--write: %d, %s", code, errs)
	}
	if code, _, errs := cli(t, "doctor", "--deep", "ann@box"); code != exitUsage || !strings.Contains(errs, "without HOST") {
		t.Errorf("--deep from afar: %d, %s", code, errs)
	}
}

// What only root may see is said to be unseen, and nothing is told of it.
func TestDoctorAsNobody(t *testing.T) {
	file, b := writeConfig(t, nowhere)
	if os.Geteuid() != 0 {
		os.Chmod(filepath.Join(b.dir, "users.d"), 0)
		defer os.Chmod(filepath.Join(b.dir, "users.d"), 0o700)
		_, all := examine(t, file)
		nobodySees(t, all)
		return
	}
	os.Chmod(filepath.Dir(b.dir), 0o755)
	os.Chmod(filepath.Join(b.dir, "users.d"), 0o700)
	os.Chmod(file, 0o644)
	_, out := asSomebody(t, reachable(t, b.dir), 65534, 65534, nil, "doctor", "--json", "--config", file)
	nobodySees(t, findingsOf(t, out))
}

func nobodySees(t *testing.T, all []finding) {
	t.Helper()
	if the(all, "users", "not looked at: needs root") == nil || !is(all, "sandbox", "commands would run with") && the(all, "sandbox", "") == nil {
		t.Errorf("%+v", all)
	}
}

// Where findings cannot be written doctor says so.
func TestDoctorIntoAFullPipe(t *testing.T) {
	file, _ := writeConfig(t, nowhere)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	cmd := exec.Command(os.Args[0], "doctor", "--config", file)
	cmd.Env = append(os.Environ(), asBerth+"=1")
	cmd.Stdout = full
	var errs strings.Builder
	cmd.Stderr = &errs
	cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code == exitOK || !strings.Contains(errs.String(), "no space left") {
		t.Errorf("%d, %q", code, errs.String())
	}
}

// The ledger's file is compared with the disk; so are limits with what may be open.
func TestDoctorLedgerAndLimits(t *testing.T) {
	file, b := writeConfig(t, nowhere+"limits.sessions = 1000000\n")
	b.put(t, "a/one", "12345")
	remedy(t, file, "berth user scan ann --config "+file)
	_, all := examine(t, file)
	if f := the(all, "ledger", ""); f != nil {
		t.Fatalf("before anything was spoilt: %+v", f)
	}
	b.put(t, "a/two", "1234567")
	stale := filepath.Join(b.home, stagePrefix+"old")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-48 * time.Hour)
	os.Chtimes(stale, long, long)
	_, all = examine(t, file)
	f := the(all, "ledger", "user ann: the ledger has 5 bytes in 2 files, and on the disk are 12 in 3")
	if f == nil {
		t.Fatalf("a file more is not found: %+v", all)
	}
	if s := the(all, "staging", "1 staging files"); s == nil || s.Level != "note" {
		t.Errorf("the staging file is not found: %+v", all)
	} else {
		remedy(t, file, s.Remedy[0])
	}
	remedy(t, file, f.Remedy[0])
	limit := the(all, "limits.nofile", "1000000 sessions may need 2000193")
	if limit == nil {
		t.Fatalf("the limit is not found: %+v", all)
	}
	if want := "ulimit -n 2000193   before:"; limit.Remedy[0] != want {
		t.Errorf("%q, want %q", limit.Remedy[0], want)
	}
	remedy(t, file, limit.Remedy[len(limit.Remedy)-1])
	_, all = examine(t, file, "--deep")
	for _, check := range []string{"ledger", "staging", "limits.nofile"} {
		if f := the(all, check, ""); f != nil {
			t.Errorf("after its remedy: %+v", f)
		}
	}
}

func TestDoctorCertificates(t *testing.T) {
	year := time.Now().Add(365 * 24 * time.Hour)
	for _, c := range []struct {
		name  string
		until time.Time
		chain func([][]byte) [][]byte
		check string
		level string
		text  string
	}{
		{"for another name", year, nil, "certificate.names", "note", "it is for elsewhere.example, and not for "},
		{"expired", time.Now().Add(-49 * time.Hour), nil, "certificate.expiry", "fail", "expired 2 days ago"},
		{"to be renewed", time.Now().Add(10*24*time.Hour + time.Hour), nil, "certificate.expiry", "warn", "expires in 10 days"},
		{"out of order", year, func(c [][]byte) [][]byte { return [][]byte{c[0], c[0], c[1]} }, "certificate.chain", "warn", "out of order"},
		{"with the key of another", year, func(c [][]byte) [][]byte { return c[1:] }, "certificate.key", "fail", "do not fit together"},
	} {
		file, b := writeConfig(t, nowhere)
		cert, key := signedCertificate(t, b.dir, c.until, c.chain)
		if c.check == "certificate.key" { // check refuses it as tls.certificate; as berth's own nobody looks before the start
			for from, to := range map[string]string{cert: "state/tls/cert.pem", key: "state/tls/key.pem"} {
				if err := os.Rename(from, filepath.Join(b.dir, to)); err != nil {
					t.Fatal(err)
				}
			}
		} else {
			b.configure(t, nowhere+fmt.Sprintf("tls.certificate = %q\ntls.key = %q\n", cert, key))
		}
		_, all := examine(t, file)
		if f := the(all, c.check, c.text); f == nil || f.Level != c.level || len(f.Remedy) == 0 {
			t.Errorf("%s: %+v", c.name, all)
		} else if c.check == "certificate.key" {
			remedy(t, file, f.Remedy[0]) // berth makes another
			if _, after := examine(t, file); the(after, c.check, "") != nil {
				t.Errorf("%s: still there after %q", c.name, f.Remedy[0])
			}
		}
	}
}

// A daemon that runs is found by its lock, and is asked what it knows: whose ports are
// its own, what its ledger has, and which configuration it has read.
func TestDoctorOfARunningDaemon(t *testing.T) {
	listen := fmt.Sprintf("log.format = \"json\"\nlisten = { control = [\"127.0.0.1:0\"], datagram = [\"127.0.0.1:0\"], http = [\"127.0.0.1:0\"], local = [%q] }\n", filepath.Join(shortDir(t), "s"))
	file, b := writeConfig(t, listen)
	p := serveBerth(t, file, nil)
	drainLog(p)
	set := listen
	for _, kind := range []string{"control", "datagram", "http"} {
		set = strings.Replace(set, kind+" = [\"127.0.0.1:0\"]", fmt.Sprintf("%s = [%q]", kind, p.addrs[kind]), 1)
	}
	b.configure(t, set)
	past := time.Now().Add(-time.Hour)
	os.Chtimes(file, past, past)
	code, all := examine(t, file)
	if code != exitOK {
		t.Errorf("exit code %d: %+v", code, all)
	}
	for check, text := range map[string]string{"daemon": fmt.Sprintf("berth runs as process %d of ", p.cmd.Process.Pid), "daemon.http": "/metrics answers", "port": p.addrs["control"] + ": berth listens there"} {
		if !slices.ContainsFunc(all, func(f finding) bool { return f.Check == check && f.Level == "ok" && strings.Contains(f.Text, text) }) {
			t.Errorf("no %s with %q: %+v", check, text, all)
		}
	}
	now := time.Now().Add(2 * time.Second)
	os.Chtimes(file, now, now)
	if _, all = examine(t, file); the(all, "daemon.reload", "has changed") == nil {
		t.Errorf("the changed configuration is not found: %+v", all)
	}
	// What it does not listen on, though it is configured.
	b.configure(t, strings.Replace(set, p.addrs["control"], "127.0.0.1:1025", 1))
	code, all = examine(t, file)
	if f := the(all, "port", "does not listen on 127.0.0.1:1025"); f == nil || code != exitFailed || !slices.Contains(f.Remedy, "berth drain --config "+file+" && berth serve --config "+file) {
		t.Errorf("%d, %+v", code, all)
	}
}

// --- what is read of the kernel and of other programs ---

func TestDoctorReadsTheKernel(t *testing.T) {
	for _, c := range []struct {
		text, want string
	}{
		{"0100007F:084B", "127.0.0.1:2123"}, {"00000000000000000000000000000000:0015", "[::]:21"},
		{"0000000000000000FFFF00000100007F:0050", "127.0.0.1:80"}, {"B80D0120000000000000000001000000:FFFF", "[2001:db8::1]:65535"},
	} {
		if a, ok := kernelAddress(c.text); !ok || a.String() != c.want {
			t.Errorf("kernelAddress(%s) = %v, %v; want %s", c.text, a, ok, c.want)
		}
	}
	for _, bad := range []string{"", "01:02", "0100007G:0050", "0100007F"} {
		if a, ok := kernelAddress(bad); ok {
			t.Errorf("kernelAddress(%q) = %v", bad, a)
		}
	}
	for list, want := range map[string]bool{"": false, "50000-50009": true, "49000,50000-50004,50005-50009": true, "50000-50008": false, "50009": false} {
		if got := coversPorts(list, 50000, 50009); got != want {
			t.Errorf("coversPorts(%q) = %v", list, got)
		}
	}
	// Small file systems have files of the same number.
	const locks = "1: FLOCK  ADVISORY  WRITE 41 00:1f:7 0 EOF\n2: FLOCK  ADVISORY  WRITE 42 08:01:7 0 EOF\n3: POSIX  ADVISORY  WRITE 43 08:02:7 0 EOF\n"
	for end, want := range map[string]int{"00:1f:7": 41, "08:01:7": 42, "08:02:7": 0, "08:11:7": 0, ":7": 41} {
		if pid := lockHolder(locks, end); pid != want {
			t.Errorf("lockHolder(%s) = %d, want %d", end, pid, want)
		}
	}
	const mounts = "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n30 22 8:1 / / ro,relatime - ext4 /dev/sda1 rw\n31 30 8:1 /var/lib/berth /var/lib/berth rw - ext4 /dev/sda1 rw\n32 30 0:9 / /a\\040b ro - tmpfs none ro\n"
	for path, want := range map[string]string{"/srv/x": "/ ro,relatime", "/var/lib/berth/homes": "/var/lib/berth rw", "/var/lib/berthing": "/ ro,relatime", "/a b": "/a b ro"} {
		if at, options := mountOf(mounts, path); at+" "+options != want {
			t.Errorf("mountOf(%s) = %s %s, want %s", path, at, options, want)
		}
	}
}

// Doctor ends with who asks it.
func TestDoctorEndsWithItsContext(t *testing.T) {
	file, _ := writeConfig(t, nowhere)
	var out, errs syncBuffer
	inv := clientInvocation(t, nil, &out, &errs, "doctor", "--config", file)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	inv.ctx = ctx
	if err := runDoctorBox(inv); err != errInterrupted || out.String() != "" {
		t.Errorf("%v, %q", err, out.String())
	}
}

// TestDoctorTellsOneLine: a stranger's words, as the names in a certificate, make no
// finding and no remedy of their own.
func TestDoctorTellsOneLine(t *testing.T) {
	var out strings.Builder
	d := &doctor{inv: &invocation{stdout: &out}, ctx: t.Context(), group: "tls", opened: "tls"}
	d.say(levelNote, "certificate|not vouched for ($1)|berth version", "valid for a\n  FAIL  x\n          evil | sh\x1b[2J")
	if got, want := out.String(), "  note  not vouched for (valid for a\\n  FAIL  x\\n          evil | sh\\x1b[2J)\n          berth version\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// A disabled user's disk may be unmounted, and an IPv4 address is written as one.
func TestDoctorOfDisabledUsers(t *testing.T) {
	file, b := writeConfig(t, nowhere+"passive.address = \"203.0.113.9\"\n")
	b.user(t, "bob", "home = \"/dev/null/bob\"\n")
	if code, all := examine(t, file); code != exitFailed || the(all, "home", "bob") == nil || !is(all, "passive.address", "PASV tells 203.0.113.9") {
		t.Errorf("%d, %+v", code, all)
	}
	b.user(t, "bob", "home = \"/dev/null/bob\"\ndisabled = true\n")
	if code, all := examine(t, file); code != exitOK || the(all, "home", "bob") != nil {
		t.Errorf("disabled: %d, %+v", code, all)
	}
}

// What the daemon tells only those with a password, and over TLS, root is told by the local
// socket: the version, the last reload, and what is stored.
func TestDoctorOfClosedPages(t *testing.T) {
	for _, pages := range []string{"http.tls = true\n", "http.users = [\"ann\"]\n", ""} {
		p, b, file, listen := administered(t, "server.drain = \"0s\"\n"+pages)
		text := listen + "server.drain = \"0s\"\n" + pages
		if pages != "" {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ln.Close()
			p.signal(syscall.SIGTERM)
			p.ended(exitOK)
			text = strings.Replace(text, "http = []", fmt.Sprintf("http = [%q]", ln.Addr()), 1)
			b.configure(t, text)
			p = serveBerth(t, file, nil)
			drainLog(p)
		}
		if _, all := examine(t, file); pages != "" && !is(all, "daemon.http", "answers") || the(all, "daemon.local", "") != nil || the(all, "daemon.version", "") != nil || the(all, "daemon.reload", "") != nil {
			t.Errorf("%s: %+v", pages, all)
		}
		b.configure(t, text+"limits.idle = 1\n")
		cli(t, "reload", "--config", file)
		b.configure(t, text)
		if _, all := examine(t, file); the(all, "daemon.reload", "the last reload was refused") == nil {
			t.Errorf("%s: the refused reload is not found: %+v", pages, all)
		}
		p.signal(syscall.SIGTERM)
		p.ended(exitOK)
	}
}

// A key that is wrong keeps doctor from nothing but what needs that key.
func TestDoctorOfAWrongConfiguration(t *testing.T) {
	groups := func(all []finding) (names string) {
		for _, f := range all {
			if !strings.HasSuffix(names, f.Group+" ") {
				names += f.Group + " "
			}
		}
		return names
	}
	const more = "listen = { control = [\"127.0.0.1:0\"], datagram = [\"127.0.0.1:x\"], http = [], local = [] }\n"
	for _, c := range []struct{ text, without string }{
		{nowhere + "limits.idle = 10\n", ""},
		{nowhere + "nonsense\n", ""},
		{nowhere + "limits.sessions = \"many\"\npassive.ports = \"9-3\"\n", "passive ports,limits"},
		{nowhere + "tls.certificate = \"/nonexistent.pem\"\n", "certificate"},
		{nowhere + "exec.timeot = \"1m\"\n", "commands"},
		{more, "firewall"},
		{nowhere + "server.idle_exit = 1\n", "daemon,files,quotas and disks"},
	} {
		file, _ := writeConfig(t, c.text)
		code, all := examine(t, file)
		if code != exitFailed || the(all, "config", "") == nil {
			t.Errorf("%s: %d, %+v", c.text, code, all)
		}
		for _, g := range boxGroups {
			g, _, _ = strings.Cut(g, ":")
			// What has nothing to say without systemd or without root is there, too.
			if left := slices.Contains(strings.Split(c.without, ","), g); left == strings.Contains(groups(all), g+" ") {
				t.Errorf("%s: %s is among %s", c.text, g, groups(all))
			}
		}
		left := ""
		if f := the(all, "config.rest", ""); f != nil {
			_, left, _ = strings.Cut(f.Text, "is wrong: ")
		}
		if got := strings.ReplaceAll(left, ", ", ","); got != c.without {
			t.Errorf("%s: not looked at is %q, want %q", c.text, got, c.without)
		}
	}
	// Not even a file: the machine is looked at.
	code, all := examine(t, "/nonexistent.toml")
	if got := groups(all); code != exitFailed || got != "configuration units kernel clock log " {
		t.Errorf("%d, %s", code, got)
	}
}

func TestFoldText(t *testing.T) {
	const line = "the wörld is round and sha256:0123456789012345678901234567890 is long"
	for _, c := range []struct {
		room int
		want string
	}{
		{0, line}, {foldLeast - 1, line}, {200, line},
		{20, "the wörld is round\n  and\n  sha256:0123456789012345678901234567890\n  is long"},
	} {
		if got := foldText(line, c.room, 2); got != c.want {
			t.Errorf("in %d cells: %q, want %q", c.room, got, c.want)
		}
	}
}

// --- fuzz targets ---

// What doctor reads of the kernel and of other programs ends, and names no port twice wrong.
func FuzzDoctorReads(f *testing.F) {
	f.Add("table inet f {\n\tset s {\n\t\ttype inet_service\n\t\telements = { 1, 3,\n\t\t\t 5, 50000-50009 }\n\t}\n\tchain in {\n\t\ttype filter hook input priority 0; policy drop;\n\t\ttcp dport @s accept\n" +
		"\t\ttcp dport vmap { 80 : accept, 81 : drop }\n\t\tth dport 53 accept\n\t\tiifname \"lan0\" counter accept comment \"x\"\n\t\tcounter packets 0 bytes 0 reject\n\t\tdport\n\t\tvmap : drop\n\t}\n}\n")
	f.Add("-P INPUT DROP\n-N ufw-user-input\n-A INPUT -p tcp -m multiport --dports 50000:50009,22 -j ACCEPT\n-A INPUT -j DROP\n-A INPUT -s 10.0.0.0/8 -j ACCEPT\n-A\n-j")
	f.Add("  sl  local_address\n   0: 0100007F:084B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0000000000000000 100 0 0 10 0\n")
	f.Add("1: FLOCK  ADVISORY  WRITE 1234 08:01:12345 0 EOF\n1: -> FLOCK ADVISORY WRITE 1 08:01:12345 0 EOF")
	f.Add("32 30 0:9 / /a\\040b ro - tmpfs none ro\n")
	f.Add("1,5-9,a-b,,9-")
	f.Add("HTTP/1.0 200 OK\r\n\r\nberth_build_info{} 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		w := firewall{named: map[string][]portRange{}}
		w.read(text)
		for _, all := range w.named {
			for _, r := range all {
				if r.Low > r.High {
					t.Fatalf("%v", r)
				}
			}
		}
		w.names("tcp", 1, 65535)
		table := portTable{owners: map[string][]int{}}
		table.read(text, false)
		table.read(text, true)
		for _, k := range table.listens {
			if !k.at.Addr().IsValid() {
				t.Fatalf("%+v", k)
			}
		}
		if pid := lockHolder(text, ":12345"); pid < 0 {
			t.Fatal(pid)
		}
		mountOf(text, "/a b")
		coversPorts(text, 1, 9)
		if status, _ := httpPageOf([]byte(text)); status < 0 {
			t.Fatal(status)
		}
	})
}
