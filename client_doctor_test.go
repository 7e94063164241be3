package main

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// far is doctor of a box, with the findings that are not ok.
func (b *clientBox) far(t *testing.T, words ...string) (int, []finding) {
	t.Helper()
	r := b.verb(t, strings.NewReader(""), append([]string{"doctor", "--json"}, words...)...)
	if r.errs != "" && r.code != exitUsage {
		t.Errorf("doctor %q: %s", words, r.errs)
	}
	return r.code, findingsOf(t, r.out)
}

// is tells whether a check was ok, with this in its text.
func is(all []finding, check, text string) bool {
	for _, f := range all {
		if f.Check == check && f.Level == "ok" && strings.Contains(f.Text, text) {
			return true
		}
	}
	return false
}

// farDatagrams gives the box of a test a datagram service on its control port.
func (b *clientBox) datagrams(t *testing.T) {
	t.Helper()
	pc, err := net.ListenPacket("udp", b.addrs[0].String())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	d := newDatagramService(b.srv.hello, func(string, string) {}, b.srv.log)
	go func() {
		defer close(ended)
		d.serve(b.srv.ctx, pc)
	}()
	t.Cleanup(func() { pc.Close(); <-ended })
}

// mend writes a line as doctor tells it into the box's configuration, and reloads.
func (b *clientBox) mend(t *testing.T, line string) {
	t.Helper()
	remedy(t, b.srv.configPath, strings.Replace(line, defaultConfigPath+" on the box", b.srv.configPath, 1))
	if err := b.srv.reload(); err != nil {
		t.Fatal(err)
	}
}

func TestDoctorFromAfar(t *testing.T) {
	b := newClientBox(t, "passive.ports = \"28100-28139\"\n", "")
	b.datagrams(t)
	code, all := b.far(t, "--write", "-p", b.port, b.host)
	if code != exitOK {
		t.Errorf("exit code %d", code)
	}
	for check, text := range map[string]string{"reach": "answers in", "berth": "FRAM 1", "tls": "TLS 1.3", "certificate": "sha256:", "login": "logged in as ann",
		"frames": "answers in frames", "clock": "from this one", "pasv": "PASV tells 127.0.0.1:281", "epsv": "comes protected", "active": "works", "write": "64 KiB went",
		"ports": "open", "datagram": "come back", "hello": "discover finds box"} {
		if !is(all, check, text) {
			t.Errorf("%s with %q is not among %+v", check, text, all)
		}
	}
	if f := the(all, "ports.rest", ""); f != nil {
		t.Errorf("not all of 40 ports were tried: %+v", f)
	}
	// Nothing of it is left on the box.
	if names, _ := filepath.Glob(filepath.Join(b.home, "*")); len(names) != 0 {
		t.Errorf("left in the home: %v", names)
	}
	// People read the same.
	r := b.verb(t, nil, "doctor", "-p", b.port, b.host)
	if r.code != exitOK || !strings.HasPrefix(r.out, "network\n  ok    127.0.0.1:"+b.port) || !wildcard("*\n\n* ok, * note*, 0 warnings, 0 failures\n", r.out) {
		t.Errorf("%+v", r)
	}
}

// PASV that tells an address where nobody is, as behind NAT: found, with the line that
// mends it, and mended by that.
func TestDoctorWrongPassiveAddress(t *testing.T) {
	b := newClientBox(t, "passive.address = \"127.0.0.99\"\npassive.ports = \"28140-28150\"\n", "")
	code, all := b.far(t, "-p", b.port, b.host)
	f := the(all, "pasv", "PASV tells 127.0.0.99, where no listing comes from")
	if f == nil || f.Level != "fail" || code != exitFailed {
		t.Fatalf("%d, %+v", code, all)
	}
	if want := `passive.address = "127.0.0.1"   in /etc/berth/berth.toml on the box`; f.Remedy[0] != want {
		t.Fatalf("%q, want %q", f.Remedy[0], want)
	}
	line := strings.Replace(f.Remedy[0], defaultConfigPath+" on the box", b.srv.configPath+", line 1", 1)
	b.mend(t, line)
	if code, all = b.far(t, "-p", b.port, b.host); the(all, "pasv", "") != nil || !is(all, "pasv", "PASV tells 127.0.0.1:") {
		t.Errorf("mended: %d, %+v", code, all)
	}
}

// Ports that the box opens and that are refused on the way: the data connection's, and
// each of the range.
func TestDoctorBlockedPorts(t *testing.T) {
	b := newClientBox(t, "passive.ports = \"28151-28160\"\n", "")
	listen := b.srv.ports.listen
	b.srv.ports.listen = func(a netip.AddrPort) (net.Listener, error) { // the box hears, and nobody comes through
		return listen(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.98"), a.Port()))
	}
	code, all := b.far(t, "-p", b.port, b.host)
	for _, check := range []string{"pasv", "epsv", "ports"} {
		f := the(all, check, "")
		if f == nil || f.Level != "fail" || code != exitFailed {
			t.Fatalf("%s: %d, %+v", check, code, all)
		}
		if !strings.Contains(strings.Join(f.Remedy, "\n"), "ufw allow 28151:28160/tcp   on the box, or\nnft add rule inet filter input tcp dport 28151-28160 accept   on the box") {
			t.Errorf("%s: %q", check, f.Remedy)
		}
	}
	if f := the(all, "ports", "28151-28160 opened by the box, and refused on the way"); f == nil {
		t.Errorf("%+v", all)
	}
	b.srv.ports.listen = listen
	if code, all = b.far(t, "-p", b.port, b.host); code != exitOK || !is(all, "ports", "28151-28160 open") {
		t.Errorf("when they get through: %d, %+v", code, all)
	}
}

// Without a login the ports that are named are knocked at; a range is written as ranges.
func TestDoctorWithoutALogin(t *testing.T) {
	b := newClientBox(t, "", "")
	t.Setenv("BERTH_PASSWORD", "")
	code, all := b.far(t, "-p", b.port, "127.0.0.1")
	if code != exitOK || the(all, "login", "not logged in: there is no password") == nil || the(all, "ports", "without a login") == nil {
		t.Errorf("%d, %+v", code, all)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:28165")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, all = b.far(t, "-p", b.port, "--ports", "28161-28170", "127.0.0.1")
	if !is(all, "ports", "28165 open") || !is(all, "ports", "28161-28164, 28166-28170 let through") {
		t.Errorf("%+v", all)
	}
	t.Setenv("BERTH_PASSWORD", "wrong")
	if code, all = b.far(t, "-p", b.port, b.host); code != exitFailed || the(all, "login", "ann is not let in") == nil {
		t.Errorf("with a wrong password: %d, %+v", code, all)
	}
	f := &farBox{doctor: &doctor{}, ports: portRange{5000, 5009}}
	states := map[uint16]portState{5000: portOpen, 5001: portOpen, 5003: portOpen, 5004: portFiltered, 5009: portOpen}
	if got := f.portRanges(states, portOpen) + "; " + f.portRanges(states, portFiltered) + f.portRanges(states, portMissed); got != "5000-5003, 5009; 5004" {
		t.Errorf("portRanges: %s", got)
	}
}

func TestDoctorOfStrangers(t *testing.T) {
	b := newClientBox(t, "", "")
	// Nobody is there.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	ln.Close()
	code, all := b.far(t, "-p", port, b.host)
	if f := the(all, "reach", "refuses"); f == nil || code != exitNoConn || f.Remedy[1] != `listen.control = ["[::]:`+port+`"]   in /etc/berth/berth.toml on the box` {
		t.Errorf("nobody: %d, %+v", code, all)
	}
	if code, all := b.far(t, "-p", port, "no-such-host.invalid"); code != exitNoConn || the(all, "name", "no-such-host.invalid") == nil {
		t.Errorf("no name: %d, %+v", code, all)
	}
	// Something else is there.
	ssh, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ssh.Close()
	go func() {
		for {
			c, err := ssh.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("SSH-2.0-OpenSSH_9.2\x1b[2J\r\n"))
			c.Close()
		}
	}()
	_, port, _ = net.SplitHostPort(ssh.Addr().String())
	if code, all := b.far(t, "-p", port, b.host); code != exitFailed || the(all, "greeting", `SSH-2.0-OpenSSH_9.2\`) == nil {
		t.Errorf("ssh: %d, %+v", code, all)
	}
	// An FTP server that is no berth: the proxy spoils the word that tells it in FEAT.
	p := newFaultProxy(t, b.addrs[0].String(), always(fault{kind: faultSpoil, find: []byte("FRAM")}))
	defer p.close()
	code, all = b.far(t, "--plain", "-p", p.port(), b.host)
	if code != exitOK || the(all, "berth", "it is no berth") == nil || the(all, "datagram", "") != nil || !is(all, "epsv", "in clear text") || the(all, "tls", "clear text") == nil || is(all, "frames", "") {
		t.Errorf("no berth: %d, %+v", code, all)
	}
	if the(all, "ports.rest", "does not tell which it has") == nil {
		t.Errorf("no berth tells its ports: %+v", all)
	}
}

// A certificate that is another than the one that is remembered: nothing secret is sent.
func TestDoctorChangedCertificate(t *testing.T) {
	b := newClientBox(t, "", "")
	pin := "[127.0.0.1]:" + b.port
	writeHome(t, filepath.Join(os.Getenv("HOME"), ".config/berth/known_hosts"), pin+" sha256:"+strings.Repeat("ab", 32)+"\n", 0o600)
	code, all := b.far(t, "-p", b.port, b.host)
	f := the(all, "certificate.known", "is not the one that is remembered")
	if f == nil || code != exitFailed || the(all, "login", "the box is not trusted") == nil {
		t.Fatalf("%d, %+v", code, all)
	}
	command, _, _ := strings.Cut(f.Remedy[0], "   ")
	words := strings.Fields(strings.ReplaceAll(strings.TrimPrefix(command, "berth "), "'", ""))
	if r := b.verb(t, nil, words...); r.code != exitOK {
		t.Fatalf("%q: %+v", words, r)
	}
	if code, all = b.far(t, "-p", b.port, b.host); code != exitOK || the(all, "certificate.known", "") != nil {
		t.Errorf("forgotten: %d, %+v", code, all)
	}
	// The same where it was said which one it has to be; and the way on knows who asked.
	code, named := b.far(t, "--fingerprint", "sha256:"+strings.Repeat("cd", 32), "-p", b.port, b.host)
	if other := the(named, "certificate.known", "--fingerprint says"); code != exitFailed || other == nil || !strings.Contains(other.Remedy[0], " "+b.host+" ") {
		t.Errorf("--fingerprint: %d, %+v", code, named)
	}
}

func TestDoctorOldCertificateAndOpenPages(t *testing.T) {
	b := newClientBox(t, "", "permissions = [\"read\", \"list\"]\n")
	cert, key := signedCertificate(t, t.TempDir(), time.Now().Add(-25*time.Hour), nil)
	for from, to := range map[string]string{cert: "cert.pem", key: "key.pem"} {
		if err := os.Rename(from, filepath.Join(b.dir, "state/tls", to)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.srv.keys.reload(); err != nil {
		t.Fatal(err)
	}
	// The pages of the box, as seen by somebody who is not on this machine.
	pages, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pages.Close()
	go func() {
		for {
			c, err := pages.Accept()
			if err != nil {
				return
			}
			bufio.NewReader(c).ReadString('\n')
			fmt.Fprint(c, "HTTP/1.0 200 OK\r\n\r\nberth_build_info{} 1\n")
			c.Close()
		}
	}()
	wasPort, wasOutside := farHTTPPort, farOutsideBox
	t.Cleanup(func() { farHTTPPort, farOutsideBox = wasPort, wasOutside })
	farHTTPPort, farOutsideBox = strconv.Itoa(pages.Addr().(*net.TCPAddr).Port), func(netip.Addr) bool { return true }
	code, all := b.far(t, "--write", "-p", b.port, b.host)
	for check, text := range map[string]string{"certificate.expiry": "it expired 1 days ago", "http": "open to everybody", "datagram": "no answer by datagram", "write": "cannot be sent"} {
		if the(all, check, text) == nil || len(the(all, check, text).Remedy) == 0 {
			t.Errorf("%s: %+v", check, all)
		}
	}
	if f := the(all, "datagram", ""); code != exitFailed || f == nil || f.Remedy[1] != "ufw allow "+b.port+"/udp   on the box, or" {
		t.Errorf("%d, %+v", code, f)
	}
}

// heardConn is a connection on which a server has said all that it ever will.
type heardConn struct {
	net.Conn
	*strings.Reader
}

func (c heardConn) Read(p []byte) (int, error) { return c.Reader.Read(p) }
func (heardConn) Write(p []byte) (int, error)  { return len(p), nil }
func (heardConn) SetDeadline(time.Time) error  { return nil }
func (heardConn) Close() error                 { return nil }

// FuzzDoctorHears: whatever a server says, its replies end, are shown as one line of text, and
// make no address that cannot be.
func FuzzDoctorHears(f *testing.F) {
	f.Add("220-x\r\n220 y\r\n227 Entering Passive Mode (127,0,0,1,195,80).\r\n229 (|||50000|)\r\n")
	f.Add("227 1,2,3,4,5\r\n229 |||\r\n")
	f.Add("227 (999,0,0,1,256,-1)\r\n229 (|||99999|)\r\n227")
	f.Add("211-\r\n FRAM 1\r\n211 end\r\n\x1b[2J\r\n229-(|||1|)\r\n229\r\n")
	f.Fuzz(func(t *testing.T, said string) {
		box := &farBox{doctor: &doctor{}, address: netip.MustParseAddr("192.0.2.1")}
		conn := heardConn{Reader: strings.NewReader(said)}
		box.ftp = &farFTP{conn, bufio.NewReaderSize(conn, 256)}
		for range 4 {
			code, _, shown := box.ftp.ask("NOOP")
			if code < 0 || code > 999 || strings.ContainsAny(shown, "\x1b\r\n") && code != 0 {
				t.Fatalf("%d %q", code, shown)
			}
			if at, err := box.pasv(); err == nil && !at.IsValid() {
				t.Fatal(at)
			}
			if at, err := box.epsv(); err == nil && (at.Port() == 0 || at.Addr() != box.address) {
				t.Fatal(at)
			}
		}
	})
}
