package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// keysBox is a TLS listener with a certificate as berth makes it on first start.
type keysBox struct {
	t      *testing.T
	keeper *tlsKeeper
	port   string
	cert   string // file

	shown chan string // fingerprint of each client's certificate, "" for none
}

func newKeysBox(t *testing.T, port string) *keysBox {
	t.Helper()
	state := t.TempDir()
	k, err := newTLSKeeper(tlsConfig{}, state, "box", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	b := &keysBox{t: t, keeper: k, cert: filepath.Join(state, tlsDirectory, "cert.pem"), shown: make(chan string, 100)}
	_, b.port, _ = net.SplitHostPort(l.Addr().String())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				cfg, s := k.control(tlsHere)
				defer k.end(s)
				tc := tls.Server(conn, cfg)
				if tc.Handshake() == nil {
					b.shown <- clientFingerprint(tc.ConnectionState())
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return b
}

// check dials the box and judges its certificate.
func (b *keysBox) check(h *hostSpec) error {
	b.t.Helper()
	cfg, err := h.tlsConfig()
	if err != nil {
		b.t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", "127.0.0.1:"+b.port, cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.ConnectionState().NegotiatedProtocol; got != tlsProtoFrames {
		b.t.Errorf("protocol %q; want %q", got, tlsProtoFrames)
	}
	err = h.checkCertificate(conn.ConnectionState())
	io.Copy(io.Discard, conn) // until the box has seen the end of the handshake
	return err
}

func (b *keysBox) word(host string) string { return "berth://ann@" + host + ":" + b.port + "/" }

func wantDistrust(t *testing.T, err error, want string) {
	t.Helper()
	if exitCode(err) != exitNoConn || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v (exit code %d); want %q and 3", err, exitCode(err), want)
	}
}

func TestCertificateIsPinnedOnFirstUse(t *testing.T) {
	dir := newHome(t)
	b := newKeysBox(t, "0")
	fp := b.keeper.fingerprint()
	file := filepath.Join(dir, knownHostName)
	other := "sha256:" + strings.Repeat("ab", 32)

	for _, c := range []struct {
		name    string
		answers []string
		want    string // "": trusted
	}{
		{"no terminal", nil, "no terminal to ask on; compare with berth's log there and add --fingerprint " + fp},
		{"no", []string{"no"}, "not trusted, and was sent nothing"},
		{"neither", []string{"", "y", "nope", "yes"}, "not trusted, and was sent nothing"},
		{"another fingerprint", []string{other}, "somebody may be in between"},
		{"after a mistake", []string{"y", " Yes "}, ""},
		{"fingerprint", []string{strings.ToUpper(fp)}, ""},
	} {
		os.Remove(file)
		h := mustResolve(t, b.word("Box"), hostOptions{})
		said := asked(t, h, c.answers...)
		err := b.check(h)
		if !strings.Contains((*said)[0], "Box (Box:"+b.port+") is not known here. Its certificate is\n  "+fp) {
			t.Errorf("%s: asked %q", c.name, *said)
		}
		if c.want != "" {
			wantDistrust(t, err, c.want)
			if _, err := os.Stat(file); err == nil {
				t.Errorf("%s: it was remembered", c.name)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}

	text, err := os.ReadFile(file)
	if want := "[box]:" + b.port + " " + fp + "\n"; err != nil || string(text) != want {
		t.Errorf("known_hosts is %q, %v; want %q", text, err, want)
	}
	for name, mode := range map[string]os.FileMode{file: 0o600, dir: 0o700} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want %v", name, st.Mode(), err, mode)
		}
	}
	// It is asked once, whatever is typed for the host; another port is another box.
	for _, word := range []string{b.word("box"), b.word("BOX."), "ann@box:"} {
		h := mustResolve(t, word, hostOptions{})
		said := asked(t, h)
		if err := b.check(h); (err == nil) != strings.Contains(word, b.port) || (len(*said) == 0) != (err == nil) {
			t.Errorf("%s: %v, said %q", word, err, *said)
		}
	}
}

func TestCertificateThatCannotBeRemembered(t *testing.T) {
	dir := newHome(t)
	b := newKeysBox(t, "0")
	if err := os.WriteFile(filepath.Dir(filepath.Dir(dir))+"/.config", nil, 0o600); err != nil {
		t.Fatal(err) // in the way of the directory, for root as well
	}
	h := mustResolve(t, b.word("box"), hostOptions{})
	said := asked(t, h, "yes")
	for range 2 { // the second connection of the same run does not ask
		if err := b.check(h); err != nil {
			t.Error(err)
		}
	}
	if len(*said) != 2 || !strings.Contains((*said)[1], "cannot be remembered: ") {
		t.Errorf("said %q", *said)
	}
}

func TestChangedCertificateIsLoud(t *testing.T) {
	dir := newHome(t)
	b := newKeysBox(t, "0")
	file := filepath.Join(dir, knownHostName)
	old := "sha256:" + strings.Repeat("ab", 32)
	writeHome(t, file, fmt.Sprintf("# mine\n[box]:%s %s\n", b.port, old), 0o600)
	h := mustResolve(t, b.word("box"), hostOptions{})
	said := asked(t, h, "yes")
	err := b.check(h)
	wantDistrust(t, err, "HAS CHANGED")
	const golden = `THE CERTIFICATE OF box HAS CHANGED, and nothing was sent
  known   OLD  (FILE:2)
  now     NEW
Either the box was given a new certificate, or somebody stands between you and it and
waits for your password. Ask whoever looks after the box, and compare what is now:
  On the box, "journalctl -u berth | grep fingerprint" shows the right one.
If it is the right one: berth keygen -R '[box]:PORT'`
	want := strings.NewReplacer("OLD", old, "FILE", file, "NEW", b.keeper.fingerprint(), "PORT", b.port).Replace(golden)
	if err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if len(*said) != 0 {
		t.Errorf("somebody was asked: %q", *said)
	}

	var out strings.Builder
	if err := keygen(keygenOptions{remove: "[box]:" + b.port}, &out); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("forgot [box]:%s %s, line 2 of %s\n", b.port, old, file); out.String() != want {
		t.Errorf("keygen -R prints %q; want %q", out.String(), want)
	}
	if err := b.check(h); err != nil {
		t.Errorf("after keygen -R: %v", err)
	}
	if text, _ := os.ReadFile(file); !strings.HasPrefix(string(text), "# mine\n[box]:") {
		t.Errorf("known_hosts is %q", text)
	}
}

func TestPinThatIsNotUnderstood(t *testing.T) {
	dir := newHome(t)
	b := newKeysBox(t, "0")
	writeHome(t, filepath.Join(dir, knownHostName), fmt.Sprintf("[other]:%s x\n[BOX]:%s sha256:12\n", b.port, b.port), 0o600)
	h := mustResolve(t, b.word("box"), hostOptions{})
	asked(t, h, "yes")
	wantDistrust(t, b.check(h), "known_hosts:2: \"sha256:12\" is no certificate fingerprint")
}

func TestFingerprintAndAuthority(t *testing.T) {
	dir := newHome(t)
	b, stranger := newKeysBox(t, "0"), newKeysBox(t, "0")
	fp, other := b.keeper.fingerprint(), stranger.keeper.fingerprint()
	authority, forBox, forOther := newAuthority(t)
	// What known_hosts says counts for nothing then.
	writeHome(t, filepath.Join(dir, knownHostName), "[box]:"+b.port+" sha256:"+strings.Repeat("ab", 32)+"\n", 0o600)
	writeHome(t, filepath.Join(dir, "config.toml"), "[hosts.pinned]\nhost = \"box\"\nfingerprint = \""+other+"\"\n", 0o600)
	for _, c := range []struct {
		name, host string
		o          hostOptions
		want       string
	}{
		{"fingerprint", "box", hostOptions{fingerprint: strings.ToUpper(fp)}, ""},
		{"wrong fingerprint", "box", hostOptions{fingerprint: other}, "box has certificate " + fp + ", and --fingerprint says " + other},
		{"of config.toml", "pinned", hostOptions{}, "and ~/.config/berth/config.toml says " + other},
		{"over config.toml", "pinned", hostOptions{fingerprint: fp}, ""},
		{"in the file", "box", hostOptions{ca: b.cert}, ""},
		{"in the file, over config.toml", "pinned", hostOptions{ca: b.cert}, ""},
		{"another's", "box", hostOptions{ca: stranger.cert}, "box is not trusted: its certificate " + fp + " is not signed by any in"},
		{"both", "box", hostOptions{ca: stranger.cert, fingerprint: fp}, ""},
	} {
		h := mustResolve(t, b.word(c.host), c.o)
		said := asked(t, h, "yes")
		err := b.check(h)
		if c.want != "" {
			wantDistrust(t, err, c.want)
		} else if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if len(*said) != 0 {
			t.Errorf("%s: said %q", c.name, *said)
		}
	}
	h := mustResolve(t, b.word("box"), hostOptions{ca: authority})
	if err := h.checkCertificate(tls.ConnectionState{PeerCertificates: forBox}); err != nil {
		t.Errorf("signed for box: %v", err)
	}
	wantDistrust(t, h.checkCertificate(tls.ConnectionState{PeerCertificates: forOther}), "its certificate is for other.example; connect by such a name")
	wantDistrust(t, h.checkCertificate(tls.ConnectionState{}), "shows no certificate")
}

func TestLoopbackThatWantsTLSIsNotAsked(t *testing.T) {
	newHome(t)
	b := newKeysBox(t, "0")
	h := mustResolve(t, b.word("localhost"), hostOptions{})
	said := asked(t, h)
	if h.tls || !h.mayFallBack {
		t.Fatalf("%+v", h)
	}
	h.tls = true // as client.go does it
	if err := b.check(h); err != nil || len(*said) != 0 {
		t.Errorf("%v, said %q", err, *said)
	}
	h = mustResolve(t, b.word("localhost"), hostOptions{tls: true})
	asked(t, h)
	wantDistrust(t, b.check(h), "is not known")
}

func TestPinsFromManyAtOnce(t *testing.T) {
	dir := newHome(t)
	file := filepath.Join(dir, knownHostName)
	writeHome(t, file, "# by hand, no line end", 0o644)
	fp := "sha256:" + strings.Repeat("0f", 32)
	const writers = 16
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			host := fmt.Sprintf("[box%d]:2121", i/2) // two for each
			if _, err := addPin(host, fp); err != nil {
				t.Error(err)
			}
			if i%4 == 0 {
				if _, _, err := removePins(fmt.Sprintf("gone%d", i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	text, err := os.ReadFile(file)
	lines := strings.Split(string(text), "\n")
	if err != nil || len(lines) != 1+writers/2+1 || lines[0] != "# by hand, no line end" || lines[len(lines)-1] != "" {
		t.Fatalf("known_hosts is\n%s (%v)", text, err)
	}
	for i := range writers / 2 {
		if pins, err := readPins(fmt.Sprintf("[box%d]:2121", i)); err != nil || len(pins) != 1 || pins[0].fingerprint != fp {
			t.Errorf("box%d: %+v, %v", i, pins, err)
		}
	}
	if _, err := addPin("[box0]:2121", "sha256:"+strings.Repeat("1f", 32)); err == nil {
		t.Error("a second pin was added beside another")
	}
}

func TestForgetting(t *testing.T) {
	dir := newHome(t)
	file := filepath.Join(dir, knownHostName)
	writeHome(t, filepath.Join(dir, "config.toml"), "[hosts.lab]\nhost = \"10.0.0.5\"\n", 0o600)
	fp := " sha256:" + strings.Repeat("0f", 32)
	all := "# [box]:2121\n\n[box]:2121" + fp + " added by ann\n[BOX]:2122" + fp + "\r\n[box2]:2121" + fp + "\n[::1]:2121" + fp + "\nnonsense\n[10.0.0.5]:2121" + fp
	for _, c := range []struct {
		word  string
		lines []int // that go
	}{
		{"box", []int{3, 4}},
		{"ann@Box.", []int{3, 4}},
		{"box:", []int{3, 4}},
		{"box:2121", []int{3}},
		{"[box]:2122", []int{4}},
		{"::1", []int{6}},
		{"[0:0::1]", []int{6}},
		{"[::1]:2121", []int{6}},
		{"lab", []int{8}},
		{"[box]:1", nil},
		{"bo", nil},
	} {
		os.Remove(file)
		real := filepath.Join(dir, "dotfiles") // a link stays one
		writeHome(t, real, all, 0o644)
		if err := os.Symlink("dotfiles", file); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		err := keygen(keygenOptions{remove: c.word}, &out)
		if (err == nil) != (c.lines != nil) || strings.Count(out.String(), "\n") != len(c.lines) || err != nil && exitCode(err) != exitFailed {
			t.Errorf("-R %s: %v, prints %q", c.word, err, out.String())
		}
		want := strings.SplitAfter(all, "\n")
		for i, n := range c.lines {
			want = append(want[:n-1-i], want[n-i:]...)
		}
		if text, err := os.ReadFile(real); err != nil || string(text) != strings.Join(want, "") {
			t.Errorf("-R %s leaves\n%s (%v); want\n%s", c.word, text, err, strings.Join(want, ""))
		}
	}
	os.Remove(file)
	if err := keygen(keygenOptions{remove: "box"}, &strings.Builder{}); exitCode(err) != exitFailed || !strings.Contains(err.Error(), "does not know box") {
		t.Errorf("without known_hosts: %v", err)
	}
	if err := keygen(keygenOptions{remove: "box", force: true}, nil); exitCode(err) != exitUsage {
		t.Errorf("-R --force: %v", err)
	}
}

func TestKeygen(t *testing.T) {
	dir := newHome(t)
	b := newKeysBox(t, "0")
	file := filepath.Join(dir, keyFileName)
	var out strings.Builder
	if err := keygen(keygenOptions{comment: "ann's laptop"}, &out); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	st, _ := os.Stat(file)
	_, rest := pem.Decode(text)
	block, _ := pem.Decode(rest)
	if st.Mode().Perm() != 0o600 || block == nil || block.Type != "CERTIFICATE" {
		t.Fatalf("%s: %v\n%s", file, st.Mode(), text)
	}
	fp := fingerprintOf(block.Bytes)
	want := "The key is in " + file + ". Whoever has that file can log in with it.\n\nOn the box, as root, NAME being your user there:\n\n" +
		"  berth user set NAME --certificate " + fp + "\n\nIt takes the place of the user's other certificates; by hand, in NAME.toml, there may be several:\n\n" +
		"  certificates = [\"" + fp + "\"]\n"
	if out.String() != want {
		t.Errorf("prints\n%s\nwant\n%s", out.String(), want)
	}

	// It is used without being named, and the box sees it.
	h := mustResolve(t, b.word("box"), hostOptions{fingerprint: b.keeper.fingerprint()})
	if !h.proof() || h.certificate.Leaf.Subject.CommonName != "ann's laptop" {
		t.Errorf("%+v", h)
	}
	if err := b.check(h); err != nil {
		t.Error(err)
	}
	if shown := <-b.shown; shown != fp {
		t.Errorf("the box was shown %q; want %s", shown, fp)
	}
	asked(t, h)
	if _, _, err := h.nextPassword(); err == nil || !strings.Contains(err.Error(), "box does not take the key "+file+", wants") {
		t.Errorf("without a terminal: %v", err)
	}

	// It is never overwritten, unless that is what was asked for.
	if err := keygen(keygenOptions{}, &out); exitCode(err) != exitFailed || !strings.Contains(err.Error(), "its fingerprint is "+fp+"; use it, or make another with -f FILE") {
		t.Errorf("again: %v", err)
	}
	if again, _ := os.ReadFile(file); string(again) != string(text) {
		t.Error("the key was overwritten")
	}
	out.Reset()
	if err := keygen(keygenOptions{force: true, quiet: true}, &out); err != nil || !strings.HasPrefix(out.String(), "sha256:") || strings.Contains(out.String(), fp) {
		t.Errorf("--force: %v, prints %q", err, out.String())
	}
	mine := filepath.Join(dir, "my key.pem")
	out.Reset()
	if err := keygen(keygenOptions{file: mine}, &out); err != nil || !strings.Contains(out.String(), "Use it with --key '"+mine+"', or with key = \""+mine+"\"") {
		t.Errorf("-f: %v, prints %q", err, out.String())
	}
	if h := mustResolve(t, "localhost:", hostOptions{key: mine}); !h.proof() {
		t.Errorf("--key on loopback: %+v", h)
	}
	for _, o := range []keygenOptions{{comment: "a\nb"}, {comment: strings.Repeat("x", 65)}} {
		if err := keygen(o, &out); exitCode(err) != exitUsage {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if err := keygen(keygenOptions{file: filepath.Join(dir, "no/dir/id.pem")}, &out); exitCode(err) != exitFailed {
		t.Errorf("no directory: %v", err)
	}

	// A key that others could have read is not used.
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	target, _ := parseTarget("box:")
	if _, err := resolveHost(target, hostOptions{}); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "others can read it (mode 0640); if nobody did, chmod 600 "+file) {
		t.Errorf("mode 0640: %v", err)
	}
	writeHome(t, file, "no PEM", 0o600)
	if _, err := resolveHost(target, hostOptions{}); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "as berth keygen writes them") {
		t.Errorf("no PEM: %v", err)
	}
}

// newAuthority makes an authority in a file, and certificates that it signed, one for
// box and one for other.example.
func newAuthority(t *testing.T) (file string, forBox, forOther []*x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(c, parent *x509.Certificate) []*x509.Certificate {
		c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(2), tlsEpoch(), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return []*x509.Certificate{leaf}
	}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca = sign(ca, ca)[0]
	file = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	return file, sign(&x509.Certificate{DNSNames: []string{"box"}}, ca), sign(&x509.Certificate{DNSNames: []string{"other.example"}}, ca)
}
