package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// tlsTestTime bounds every exchange of these tests; none needs a hundredth of it.
const tlsTestTime = 30 * time.Second

var tlsHere = netip.MustParseAddr("127.0.0.1")

// tlsTestLog collects log lines.
type tlsTestLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *tlsTestLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *tlsTestLog) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), s)
}

func (l *tlsTestLog) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func newTestKeeper(t *testing.T, cfg tlsConfig) (*tlsKeeper, *tlsTestLog) {
	t.Helper()
	log := &tlsTestLog{}
	k, err := newTLSKeeper(cfg, t.TempDir(), "box", log.logger())
	if err != nil {
		t.Fatal(err)
	}
	return k, log
}

// lookNow lets the next use of k look at the files, as if a second had gone.
func lookNow(k *tlsKeeper) { k.checked.Store(-int64(tlsCheckEvery)) }

// tlsPair is a TCP connection over loopback.
func tlsPair(t *testing.T) (server, client net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(tlsTestTime)
	server.SetDeadline(deadline)
	client.SetDeadline(deadline)
	t.Cleanup(func() { server.Close(); client.Close() })
	return server, client
}

// tlsShake does one handshake and passes a byte from server to client, which
// brings a TLS 1.3 client its ticket and both sides the other's refusal.
func tlsShake(t *testing.T, server, client *tls.Config) (sst, cst tls.ConnectionState, serr, cerr error) {
	t.Helper()
	sc, cc := tlsPair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c := tls.Server(sc, server)
		if serr = c.Handshake(); serr == nil {
			sst = c.ConnectionState()
			c.Write([]byte{'.'})
		}
		closeTLS(c)
	}()
	c := tls.Client(cc, client)
	if cerr = c.Handshake(); cerr == nil {
		_, cerr = io.ReadFull(c, make([]byte, 1))
		cst = c.ConnectionState()
	}
	c.Close()
	<-done
	return sst, cst, serr, cerr
}

func tlsClientFor(version uint16) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: "box", MinVersion: tls.VersionTLS12, MaxVersion: version}
}

// writeTestPair writes a fresh pair over cert and key and returns its fingerprint.
func writeTestPair(t *testing.T, cert, key string) string {
	t.Helper()
	c, k, err := selfSigned("other")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{cert: c, key: k} {
		if name == "" {
			continue
		}
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	block, _ := pem.Decode(c)
	return fingerprintOf(block.Bytes)
}

// tlsTestClientCert makes a client certificate, signed by itself without an authority.
func tlsTestClientCert(t *testing.T, by *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "camera"},
		NotBefore: tlsEpoch(), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, IsCA: by == nil,
	}
	parent, signer := c, any(key)
	if by != nil {
		parent, signer = by.Leaf, by.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// --- the certificate ---

func TestTLSGeneratedCertificateIsKept(t *testing.T) {
	dir, log := filepath.Join(t.TempDir(), "state"), &tlsTestLog{}
	k, err := newTLSKeeper(tlsConfig{}, dir, "box", log.logger())
	if err != nil {
		t.Fatal(err)
	}
	again, err := newTLSKeeper(tlsConfig{}, dir, "renamed", log.logger())
	if err != nil {
		t.Fatal(err)
	}
	if k.fingerprint() != again.fingerprint() {
		t.Errorf("fingerprint after a restart = %s; want %s", again.fingerprint(), k.fingerprint())
	}
	if n := log.count("fingerprint=" + k.fingerprint()); n != 2 {
		t.Errorf("fingerprint logged %d times in two starts; want 2", n)
	}
	for name, want := range map[string]os.FileMode{"tls": 0o700, "tls/key.pem": 0o600, "tls/cert.pem": 0o644} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("mode of %s = %v, %v; want %v", name, st.Mode().Perm(), err, want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".tls-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	leaf := k.current().certs[0].Leaf
	if leaf.IsCA || leaf.PublicKeyAlgorithm != x509.ECDSA || leaf.Subject.CommonName != "box" {
		t.Errorf("certificate: CA %v, %v, subject %v", leaf.IsCA, leaf.PublicKeyAlgorithm, leaf.Subject)
	}
	for _, host := range []string{"localhost", "box", "127.0.0.1", "::1"} {
		if err := leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if years := time.Until(k.notAfter()).Hours() / 24 / 365; years < 9.9 || years > 11 {
		t.Errorf("valid for %.1f years; want 10", years)
	}
	sum := sha256.Sum256(leaf.Raw)
	if want := "sha256:" + hex.EncodeToString(sum[:]); k.fingerprint() != want {
		t.Errorf("fingerprint() = %s; want %s", k.fingerprint(), want)
	}
	// A client that trusts just this certificate verifies it.
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	cfg, s := k.control(tlsHere)
	defer k.end(s)
	if _, _, serr, cerr := tlsShake(t, cfg, &tls.Config{RootCAs: roots, ServerName: "localhost"}); serr != nil || cerr != nil {
		t.Errorf("verified handshake: server %v, client %v", serr, cerr)
	}
}

func TestTLSStartsTogetherUseOneCertificate(t *testing.T) {
	dir := t.TempDir()
	var prints sync.Map
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			k, err := newTLSKeeper(tlsConfig{}, dir, "box", slog.New(slog.DiscardHandler))
			if err != nil {
				t.Error(err)
				return
			}
			prints.Store(k.fingerprint(), true)
		})
	}
	wg.Wait()
	n := 0
	prints.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d certificates in use; want 1", n)
	}
}

func TestTLSKeeperRefuses(t *testing.T) {
	dir := t.TempDir()
	cert, key, other := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem"), filepath.Join(dir, "o.pem")
	writeTestPair(t, cert, key)
	writeTestPair(t, "", other)
	empty := filepath.Join(dir, "empty.pem")
	os.WriteFile(empty, nil, 0o600)
	half := t.TempDir()
	os.Mkdir(filepath.Join(half, "tls"), 0o700)
	os.WriteFile(filepath.Join(half, "tls", "key.pem"), nil, 0o600)
	for _, tt := range []struct {
		name  string
		cfg   tlsConfig
		state string
		want  string
	}{
		{"no key", tlsConfig{Certificate: cert}, dir, "belong together"},
		{"no file", tlsConfig{Certificate: cert + "x", Key: key}, dir, "no such file"},
		{"not a pair", tlsConfig{Certificate: cert, Key: other}, dir, "does not match"},
		{"empty", tlsConfig{Certificate: empty, Key: key}, dir, empty},
		{"no authority", tlsConfig{Certificate: cert, Key: key, ClientCA: empty}, dir, "PEM"},
		{"reuse", tlsConfig{SessionReuse: "maybe"}, dir, `"off", "warn" or "on"`},
		{"half of a made pair", tlsConfig{}, half, "remove the directory"},
	} {
		_, err := newTLSKeeper(tt.cfg, tt.state, "box", slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v; want one with %q", tt.name, err, tt.want)
		}
	}
}

func TestTLSChangedFilesArePickedUp(t *testing.T) {
	dir := t.TempDir()
	cfg := tlsConfig{Certificate: filepath.Join(dir, "c.pem"), Key: filepath.Join(dir, "k.pem")}
	first := writeTestPair(t, cfg.Certificate, cfg.Key)
	k, log := newTestKeeper(t, cfg)
	seen := func() string {
		t.Helper()
		c, s := k.control(tlsHere)
		defer k.end(s)
		_, st, serr, cerr := tlsShake(t, c, tlsClientFor(tls.VersionTLS13))
		if serr != nil || cerr != nil {
			t.Fatal(serr, cerr)
		}
		return fingerprintOf(st.PeerCertificates[0].Raw)
	}
	if seen() != first {
		t.Fatal("not the configured certificate")
	}

	// Half replaced: a new certificate, still the old key.
	newKey := filepath.Join(dir, "new.pem")
	second := writeTestPair(t, cfg.Certificate, newKey)
	for range 3 {
		lookNow(k)
		if got := seen(); got != first {
			t.Errorf("with half a pair %s is used; want the old %s", got, first)
		}
	}
	if n := log.count("certificate not changed"); n != 1 {
		t.Errorf("complained %d times of one broken pair; want once", n)
	}
	if err := k.reload(); err == nil || !strings.Contains(err.Error(), cfg.Key) {
		t.Errorf("reload of half a pair = %v; want an error that names %s", err, cfg.Key)
	}
	if err := os.Rename(newKey, cfg.Key); err != nil {
		t.Fatal(err)
	}
	lookNow(k)
	if got := seen(); got != second || k.fingerprint() != second {
		t.Errorf("after the change %s is used and %s told; want %s", got, k.fingerprint(), second)
	}

	// Gone for a moment, as while certbot moves things: the old one stays.
	os.Rename(cfg.Certificate, cfg.Certificate+".away")
	lookNow(k)
	if got := seen(); got != second {
		t.Errorf("without a file %s is used; want %s", got, second)
	}
	third := writeTestPair(t, cfg.Certificate, cfg.Key)
	if err := k.reload(); err != nil || k.fingerprint() != third {
		t.Errorf("reload = %v, fingerprint %s; want %s", err, k.fingerprint(), third)
	}
}

func TestTLSLooksAtMostOnceASecond(t *testing.T) {
	dir := t.TempDir()
	cfg := tlsConfig{Certificate: filepath.Join(dir, "c.pem"), Key: filepath.Join(dir, "k.pem")}
	first := writeTestPair(t, cfg.Certificate, cfg.Key)
	k, _ := newTestKeeper(t, cfg)
	k.checked.Store(int64(time.Since(k.born) + time.Hour)) // just looked
	second := writeTestPair(t, cfg.Certificate, cfg.Key)
	if got := k.fingerprint(); got != first {
		t.Errorf("within the second %s is used; want %s", got, first)
	}
	lookNow(k)
	if got := k.fingerprint(); got != second {
		t.Errorf("a second later %s is used; want %s", got, second)
	}
}

// --- client certificates ---

func TestTLSClientCertificate(t *testing.T) {
	authority := tlsTestClientCert(t, nil)
	signed, own := tlsTestClientCert(t, &authority), tlsTestClientCert(t, nil)
	stolen := tls.Certificate{Certificate: own.Certificate, PrivateKey: signed.PrivateKey}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Certificate[0]}), 0o600)

	for _, tt := range []struct {
		name string
		ca   string
		cert *tls.Certificate
		want string // fingerprint; "refused"
	}{
		{"none", "", nil, ""},
		{"self-signed", "", &own, fingerprintOf(own.Certificate[0])},
		{"another's certificate", "", &stolen, "refused"},
		{"none with an authority", ca, nil, ""},
		{"signed", ca, &signed, fingerprintOf(signed.Certificate[0])},
		{"not by that authority", ca, &own, "refused"},
	} {
		k, _ := newTestKeeper(t, tlsConfig{ClientCA: tt.ca})
		for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(tt.name+" "+tls.VersionName(v), func(t *testing.T) {
				client := tlsClientFor(v)
				if tt.cert != nil {
					// The callback sends it even if no authority fits.
					client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return tt.cert, nil }
				}
				cfg, s := k.control(tlsHere)
				defer k.end(s)
				st, _, serr, cerr := tlsShake(t, cfg, client)
				if tt.want == "refused" {
					if serr == nil || cerr == nil {
						t.Errorf("handshake: server %v, client %v; want both to fail", serr, cerr)
					}
					return
				}
				if got := clientFingerprint(st); serr != nil || cerr != nil || got != tt.want {
					t.Errorf("clientFingerprint = %q, server %v, client %v; want %q", got, serr, cerr, tt.want)
				}
			})
		}
	}
}

func TestTLSDataAsksForNoCertificate(t *testing.T) {
	k, _ := newTestKeeper(t, tlsConfig{})
	own := tlsTestClientCert(t, nil)
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		_, s := k.control(tlsHere)
		defer k.end(s)
		client := tlsClientFor(v)
		asked := false
		client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { asked = true; return &own, nil }
		for _, receives := range []bool{false, true} {
			if _, _, serr, cerr := tlsShake(t, k.data(s, receives), client); serr != nil || cerr != nil || asked {
				t.Errorf("%s, receives %v: server %v, client %v, asked %v", tls.VersionName(v), receives, serr, cerr, asked)
			}
		}
	}
}

// A client that logged in by certificate must be able to resume like others.
func TestTLSResumesWithClientCertificate(t *testing.T) {
	own := tlsTestClientCert(t, nil)
	for _, mode := range []string{"off", "on"} {
		for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			k, _ := newTestKeeper(t, tlsConfig{SessionReuse: mode})
			client := tlsClientFor(v)
			client.Certificates = []tls.Certificate{own}
			client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
			cfg, s := k.control(tlsHere)
			if _, _, serr, cerr := tlsShake(t, cfg, client); serr != nil || cerr != nil {
				t.Fatal(serr, cerr)
			}
			k.login(s, "ann")
			for _, receives := range []bool{false, true} {
				st, _, serr, cerr := tlsShake(t, k.data(s, receives), client)
				resumed, err := k.checkData(s, st)
				want := mode == "on" || !receives || v == tls.VersionTLS12
				if serr != nil || cerr != nil || err != nil || resumed != want {
					t.Errorf("%s, %s, receives %v: resumed %v, %v (server %v, client %v); want %v", mode, tls.VersionName(v), receives, resumed, err, serr, cerr, want)
				}
			}
			// The same client's next control connection may resume, and is known by its certificate.
			k.end(s)
			cfg, s = k.control(tlsHere)
			st, _, serr, cerr := tlsShake(t, cfg, client)
			if serr != nil || cerr != nil || !st.DidResume || clientFingerprint(st) != fingerprintOf(own.Certificate[0]) {
				t.Errorf("%s, %s: next control connection resumed %v as %q (server %v, client %v)", mode, tls.VersionName(v), st.DidResume, clientFingerprint(st), serr, cerr)
			}
			k.end(s)
		}
	}
}

// --- session reuse ---

func TestTLSSessionReuse(t *testing.T) {
	type client struct {
		name string
		// cache returns the tickets that the data connection of ann's session comes with.
		cache func(connect func(addr netip.Addr, user string) (*tlsSession, tls.ClientSessionCache), k *tlsKeeper, own tls.ClientSessionCache) tls.ClientSessionCache
		want  string
	}
	elsewhere := netip.MustParseAddr("192.0.2.1")
	type connectFunc = func(netip.Addr, string) (*tlsSession, tls.ClientSessionCache)
	other := func(addr netip.Addr, user string, over bool) func(connectFunc, *tlsKeeper, tls.ClientSessionCache) tls.ClientSessionCache {
		return func(connect connectFunc, k *tlsKeeper, _ tls.ClientSessionCache) tls.ClientSessionCache {
			s, cache := connect(addr, user)
			if over {
				k.end(s)
			}
			return cache
		}
	}
	clients := []client{
		{"own session", func(_ connectFunc, _ *tlsKeeper, own tls.ClientSessionCache) tls.ClientSessionCache { return own }, "resumed"},
		{"no ticket", func(connectFunc, *tlsKeeper, tls.ClientSessionCache) tls.ClientSessionCache {
			return tls.NewLRUClientSessionCache(1)
		}, "fresh"},
		{"same user's other session", other(tlsHere, "ann", false), "resumed"},
		{"mapped address", other(netip.MustParseAddr("::ffff:127.0.0.1"), "ann", false), "resumed"},
		{"ended session", other(tlsHere, "ann", true), "foreign"},
		{"other user", other(tlsHere, "bob", false), "foreign"},
		{"nobody's session", other(tlsHere, "", false), "foreign"},
		{"other address", other(elsewhere, "ann", false), "foreign"},
		{"other server", func(connectFunc, *tlsKeeper, tls.ClientSessionCache) tls.ClientSessionCache {
			k, _ := newTestKeeper(t, tlsConfig{})
			cfg, _ := k.control(tlsHere)
			cache := tls.NewLRUClientSessionCache(1)
			c := tlsClientFor(tls.VersionTLS12)
			c.ClientSessionCache = cache
			tlsShake(t, cfg, c)
			return cache
		}, "fresh"},
	}
	for _, mode := range []string{"off", "warn", "on"} {
		for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, cl := range clients {
				for _, receives := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/%s/%s/receives=%v", mode, tls.VersionName(v), cl.name, receives), func(t *testing.T) {
						k, _ := newTestKeeper(t, tlsConfig{SessionReuse: mode})
						var counted []string
						k.onReuse = func(result string) { counted = append(counted, result) }
						connect := func(addr netip.Addr, user string) (*tlsSession, tls.ClientSessionCache) {
							cfg, s := k.control(addr)
							c := tlsClientFor(v)
							c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
							if _, _, serr, cerr := tlsShake(t, cfg, c); serr != nil || cerr != nil {
								t.Fatal(serr, cerr)
							}
							k.login(s, user)
							return s, c.ClientSessionCache
						}
						s, own := connect(tlsHere, "ann")
						c := tlsClientFor(v)
						c.ClientSessionCache = cl.cache(connect, k, own)
						// Twice: the ticket that a data connection gave counts like the first.
						for i := range 2 {
							counted = nil
							st, _, serr, cerr := tlsShake(t, k.data(s, receives), c)
							if serr != nil || cerr != nil {
								t.Fatal(serr, cerr)
							}
							can := mode == "on" || v == tls.VersionTLS12 || !receives
							result := cl.want
							if i == 1 && can {
								result = "resumed"
							}
							resumed, err := k.checkData(s, st)
							if want := can && result == "resumed"; resumed != want {
								t.Errorf("connection %d: resumed %v; want %v", i, resumed, want)
							}
							if want := mode == "on" && result != "resumed"; errors.Is(err, errTLSNotResumed) != want || (err != nil) != want {
								t.Errorf("connection %d: error %v; want one: %v", i, err, want)
							}
							want := []string{result}
							if !can {
								want = nil
							}
							if !slices.Equal(counted, want) {
								t.Errorf("connection %d: counted %v; want %v", i, counted, want)
							}
							if mode == "on" && st.Version != tls.VersionTLS12 {
								t.Errorf("connection %d: %s; want TLS 1.2", i, tls.VersionName(st.Version))
							}
						}
					})
				}
			}
		}
	}
}

// TestTLSSessionReuseWarns: who would be shut out by "on" is told once for each session.
func TestTLSSessionReuseWarns(t *testing.T) {
	for mode, want := range map[string]int{"off": 0, "warn": 1} {
		k, log := newTestKeeper(t, tlsConfig{SessionReuse: mode})
		_, s := k.control(tlsHere)
		k.login(s, "ann")
		for range 2 {
			st, _, serr, cerr := tlsShake(t, k.data(s, false), tlsClientFor(tls.VersionTLS12))
			if serr != nil || cerr != nil {
				t.Fatal(serr, cerr)
			}
			if resumed, err := k.checkData(s, st); resumed || err != nil {
				t.Errorf("%s: resumed %v, %v", mode, resumed, err)
			}
		}
		if n := log.count(`level=WARN msg="TLS data connection" user=ann addr=127.0.0.1 result=fresh`); n != want {
			t.Errorf("%s: %d warnings; want %d", mode, n, want)
		}
	}
}

func TestTLSKeeperWithoutSession(t *testing.T) {
	k, _ := newTestKeeper(t, tlsConfig{SessionReuse: "on"})
	k.login(nil, "ann")
	k.end(nil)
	cfg, s := k.control(tlsHere)
	if len(k.live) != 1 || cfg == nil {
		t.Errorf("%d live sessions; want 1", len(k.live))
	}
	k.end(s)
	k.end(s)
	if len(k.live) != 0 {
		t.Errorf("%d sessions left; want none", len(k.live))
	}
	for _, receives := range []bool{false, true} {
		if !k.data(nil, receives).SessionTicketsDisabled {
			t.Error("data connection of no session gives tickets")
		}
	}
}

// --- ALPN and versions ---

func TestTLSProtocols(t *testing.T) {
	k, _ := newTestKeeper(t, tlsConfig{})
	for _, tt := range []struct {
		kind  string
		offer []string
		want  string // "refused"
	}{
		{"implicit", nil, ""},
		{"implicit", []string{"ftp"}, "ftp"},
		{"implicit", []string{"berth/1"}, "berth/1"},
		{"implicit", []string{"ftp", "berth/1"}, "berth/1"},
		{"implicit", []string{"http/1.1"}, "refused"},
		{"implicit", []string{"h2", "http/1.1"}, "refused"},
		{"implicit", []string{"http/1.1", "ftp"}, "ftp"},
		{"implicit", []string{"x-filezilla-ftp"}, ""},
		{"implicit", []string{"x-filezilla-ftp", "ftp"}, "ftp"},
		{"explicit", nil, ""},
		{"explicit", []string{"ftp"}, "ftp"},
		{"explicit", []string{"berth/1"}, "berth/1"},
		{"explicit", []string{"x-filezilla-ftp"}, ""},
		{"explicit", []string{"h2", "http/1.1"}, "refused"},
		{"explicit", []string{"smtp"}, "refused"},
		{"data", nil, ""},
		{"data", []string{"ftp-data"}, "ftp-data"},
		{"data", []string{"ftp"}, "ftp"},
		{"data", []string{"h2", "http/1.1"}, "refused"},
	} {
		cfg, s := k.control(tlsHere)
		if tt.kind == "data" {
			cfg = k.data(s, false)
		}
		client := tlsClientFor(tls.VersionTLS13)
		client.NextProtos = tt.offer
		_, st, serr, cerr := tlsShake(t, cfg, client)
		k.end(s)
		got := st.NegotiatedProtocol
		if serr != nil && cerr != nil {
			got = "refused"
		}
		if got != tt.want {
			t.Errorf("%s, offered %q: %q (server %v, client %v); want %q", tt.kind, tt.offer, got, serr, cerr, tt.want)
		}
	}
}

func TestTLSVersionsAndGroups(t *testing.T) {
	k, _ := newTestKeeper(t, tlsConfig{})
	for _, v := range []uint16{tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
		for _, group := range []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384} {
			for _, kind := range []string{"control", "send", "receive"} {
				cfg, s := k.control(tlsHere)
				if kind != "control" {
					cfg = k.data(s, kind == "receive")
				}
				client := tlsClientFor(v)
				client.MinVersion, client.CurvePreferences = v, []tls.CurveID{group}
				_, st, serr, cerr := tlsShake(t, cfg, client)
				k.end(s)
				if v < tls.VersionTLS12 {
					if serr == nil || cerr == nil {
						t.Errorf("%s, %s: server %v, client %v; want a refusal", kind, tls.VersionName(v), serr, cerr)
					}
				} else if serr != nil || cerr != nil || st.Version != v || st.CurveID != group {
					t.Errorf("%s, %s with %v: %s with %v, server %v, client %v", kind, tls.VersionName(v), group, tls.VersionName(st.Version), st.CurveID, serr, cerr)
				}
			}
		}
	}
}

// --- uploads ---

var tlsUploadSizes = []int{0, 1, 64 << 10, 8 << 20}

// A tlsRecordConn gives one record to each read of TLS's, as OpenSSL takes
// them from the kernel. crypto/tls itself reads ahead, so a ticket that comes
// with the end of the handshake leaves the kernel's buffer at once, and a Go
// client alone never shows what tickets do to uploads.
type tlsRecordConn struct {
	net.Conn
	head []byte // of the record that comes
	left int    // of its body
}

func (c *tlsRecordConn) Read(p []byte) (int, error) {
	if c.left == 0 {
		n, err := c.Conn.Read(p[:min(len(p), 5-len(c.head))])
		if c.head = append(c.head, p[:n]...); len(c.head) == 5 {
			c.left, c.head = int(c.head[3])<<8|int(c.head[4]), nil
		}
		return n, err
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// tlsReceive is the server's side of an upload: the digest of what came, and
// whether it ended with close_notify.
func tlsReceive(conn net.Conn, cfg *tls.Config) (sum [32]byte, n int64, notified bool, err error) {
	raw := &eofConn{Conn: conn}
	c := tls.Server(raw, cfg)
	if err = c.Handshake(); err != nil {
		return
	}
	h := sha256.New()
	n, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{c}, make([]byte, 128<<10))
	notified = err == nil && !raw.sawEOF()
	h.Sum(sum[:0])
	err = errors.Join(err, closeTLS(c))
	return
}

func tlsPayload(n int) []byte {
	p := make([]byte, n)
	rand.Read(p)
	return p
}

// Clients that write only and close at once: what Perl, Ruby and rclone do.
// With tickets behind the handshake, 19 of 20 of the 8 MiB uploads over TLS
// 1.3 by the client that reads no further than it must were cut short.
func TestTLSUploadsArriveWhole(t *testing.T) {
	for _, mode := range []string{"off", "on"} {
		k, _ := newTestKeeper(t, tlsConfig{SessionReuse: mode})
		for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			if mode == "on" && v == tls.VersionTLS13 {
				continue // becomes TLS 1.2
			}
			client := tlsClientFor(v)
			client.ClientSessionCache = tls.NewLRUClientSessionCache(4) // without one it asks for no ticket
			cfg, s := k.control(tlsHere)
			if _, _, serr, cerr := tlsShake(t, cfg, client); serr != nil || cerr != nil {
				t.Fatal(serr, cerr)
			}
			k.login(s, "ann")
			for _, ahead := range []bool{false, true} {
				for _, size := range tlsUploadSizes {
					t.Run(fmt.Sprintf("%s/%s/%d/ahead=%v", mode, tls.VersionName(v), size, ahead), func(t *testing.T) {
						data := tlsPayload(size)
						want := sha256.Sum256(data)
						for i := range 20 {
							sc, cc := tlsPair(t)
							if !ahead {
								cc = &tlsRecordConn{Conn: cc}
							}
							sent := make(chan error, 1)
							go func() {
								c := tls.Client(cc, client)
								err := c.Handshake()
								if err == nil {
									_, err = c.Write(data)
								}
								sent <- errors.Join(err, c.Close())
							}()
							sum, n, notified, err := tlsReceive(sc, k.data(s, true))
							if serr := <-sent; err != nil || serr != nil || sum != want || !notified {
								t.Fatalf("upload %d: %d of %d bytes, close_notify %v, server %v, client %v", i, n, size, notified, err, serr)
							}
						}
					})
				}
			}
			k.end(s)
		}
	}
}

// tlsTicketCount is a session cache that counts the tickets that come.
type tlsTicketCount struct{ n int }

func (c *tlsTicketCount) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (c *tlsTicketCount) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		c.n++
	}
}

// The rule behind the test above, without its timing.
func TestTLSTicketsByDirection(t *testing.T) {
	for _, tt := range []struct {
		mode     string
		version  uint16
		receives bool
		want     int
	}{
		{"off", tls.VersionTLS13, true, 0},
		{"warn", tls.VersionTLS13, true, 0},
		{"off", tls.VersionTLS13, false, 1},
		{"off", tls.VersionTLS12, true, 1},
		{"off", tls.VersionTLS12, false, 1},
		{"on", tls.VersionTLS13, true, 1}, // which becomes TLS 1.2
		{"on", tls.VersionTLS12, false, 1},
	} {
		k, _ := newTestKeeper(t, tlsConfig{SessionReuse: tt.mode})
		_, s := k.control(tlsHere)
		cache := &tlsTicketCount{}
		client := tlsClientFor(tt.version)
		client.ClientSessionCache = cache
		st, _, serr, cerr := tlsShake(t, k.data(s, tt.receives), client)
		k.end(s)
		if serr != nil || cerr != nil || cache.n != tt.want || tt.mode == "on" && st.Version != tls.VersionTLS12 {
			t.Errorf("%s, %s, receives %v: %d tickets over %s (server %v, client %v); want %d", tt.mode, tls.VersionName(tt.version), tt.receives, cache.n, tls.VersionName(st.Version), serr, cerr, tt.want)
		}
	}
}

func TestTLSMissingCloseNotifyIsSeen(t *testing.T) {
	k, _ := newTestKeeper(t, tlsConfig{})
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, size := range tlsUploadSizes {
			data := tlsPayload(size)
			sc, cc := tlsPair(t)
			sent := make(chan error, 1)
			go func() {
				c := tls.Client(cc, tlsClientFor(v))
				err := c.Handshake()
				if err == nil && size > 0 {
					_, err = c.Write(data)
				}
				sent <- errors.Join(err, cc.Close()) // TCP's end without TLS's
			}()
			_, s := k.control(tlsHere)
			sum, n, notified, err := tlsReceive(sc, k.data(s, true))
			k.end(s)
			if serr := <-sent; err != nil || serr != nil || sum != sha256.Sum256(data) || notified {
				t.Errorf("%s: %d of %d bytes, close_notify %v, server %v, client %v; want all of them and none", tls.VersionName(v), n, size, notified, err, serr)
			}
		}
	}
}

// A record cut in two is an error by itself, never an end.
func TestTLSCutRecordIsAnError(t *testing.T) {
	k, _ := newTestKeeper(t, tlsConfig{})
	_, s := k.control(tlsHere)
	defer k.end(s)
	sc, cc := tlsPair(t)
	go func() {
		c := tls.Client(cc, tlsClientFor(tls.VersionTLS13))
		if c.Handshake() == nil {
			cc.Write([]byte{23, 3, 3, 0x10, 0, 1, 2, 3}) // 8 of a record's 4,101 bytes
		}
		cc.Close()
	}()
	if _, _, notified, err := tlsReceive(sc, k.data(s, true)); !errors.Is(err, io.ErrUnexpectedEOF) || notified {
		t.Errorf("cut record: close_notify %v, error %v; want io.ErrUnexpectedEOF", notified, err)
	}
}

func TestTLSServerSendsCloseNotify(t *testing.T) {
	k, _ := newTestKeeper(t, tlsConfig{})
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		_, s := k.control(tlsHere)
		sc, cc := tlsPair(t)
		done := make(chan error, 1)
		go func() {
			c := tls.Server(sc, k.data(s, false))
			_, err := c.Write([]byte("half of a file that then could not be read"))
			done <- errors.Join(err, closeTLS(c))
		}()
		raw := &eofConn{Conn: cc}
		got, err := io.ReadAll(tls.Client(raw, tlsClientFor(v)))
		if serr := <-done; err != nil || serr != nil || raw.sawEOF() || len(got) != 42 {
			t.Errorf("%s: %d bytes, end below TLS %v, client %v, server %v", tls.VersionName(v), len(got), raw.sawEOF(), err, serr)
		}
		k.end(s)
	}
}

// --- other people's TLS ---

// tlsTool finds a client program, or skips; where clients are required it fails.
func tlsTool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("BERTH_REQUIRE_CLIENTS") == "1" {
			t.Fatalf("%s is required: %v", name, err)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

func TestTLSUploadsFromRealClients(t *testing.T) {
	versions := map[string]map[uint16]string{
		"openssl":    {tls.VersionTLS12: "-tls1_2", tls.VersionTLS13: "-tls1_3"},
		"gnutls-cli": {tls.VersionTLS12: "NORMAL:-VERS-ALL:+VERS-TLS1.2", tls.VersionTLS13: "NORMAL:-VERS-ALL:+VERS-TLS1.3"},
	}
	k, _ := newTestKeeper(t, tlsConfig{})
	_, s := k.control(tlsHere)
	defer k.end(s)
	for name, flags := range versions {
		for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, size := range tlsUploadSizes {
				t.Run(fmt.Sprintf("%s/%s/%d", name, tls.VersionName(v), size), func(t *testing.T) {
					program := tlsTool(t, name)
					ctx, cancel := context.WithTimeout(t.Context(), tlsTestTime)
					defer cancel()
					l, err := net.Listen("tcp", "127.0.0.1:0")
					if err != nil {
						t.Fatal(err)
					}
					defer l.Close()
					l.(*net.TCPListener).SetDeadline(time.Now().Add(tlsTestTime))
					data := tlsPayload(size)
					_, port, _ := net.SplitHostPort(l.Addr().String())
					args := []string{"s_client", "-nocommands", "-no_ign_eof", flags[v], "-connect", l.Addr().String()}
					if name == "gnutls-cli" {
						args = []string{"--insecure", "--logfile=" + os.DevNull, "--priority", flags[v], "-p", port, "127.0.0.1"}
					}
					cmd := exec.CommandContext(ctx, program, args...)
					cmd.Stdin = bytes.NewReader(data)
					var out bytes.Buffer
					cmd.Stdout, cmd.Stderr = &out, &out
					if err := cmd.Start(); err != nil {
						t.Fatal(err)
					}
					conn, err := l.Accept()
					if err != nil {
						cmd.Wait()
						t.Fatalf("%v: %s", err, out.Bytes())
					}
					conn.SetDeadline(time.Now().Add(tlsTestTime))
					sum, n, notified, err := tlsReceive(conn, k.data(s, true))
					cmd.Wait() // its own exit status is no part of what is asked here
					if err != nil || sum != sha256.Sum256(data) || !notified {
						t.Errorf("%d of %d bytes, close_notify %v, error %v: %s", n, size, notified, err, out.Bytes())
					}
				})
			}
		}
	}
}

// OpenSSL verifies the made certificate by name, and resumes.
func TestTLSOpenSSLVerifiesAndResumes(t *testing.T) {
	program := tlsTool(t, "openssl")
	for _, mode := range []string{"off", "on"} {
		for _, v := range []string{"-tls1_2", "-tls1_3"} {
			if mode == "on" && v == "-tls1_3" {
				continue // "on" is TLS 1.2 only
			}
			t.Run(mode+v, func(t *testing.T) {
				k, _ := newTestKeeper(t, tlsConfig{SessionReuse: mode})
				ticket := filepath.Join(t.TempDir(), "session.pem")
				run := func(cfg *tls.Config, more ...string) (st tls.ConnectionState, out []byte) {
					t.Helper()
					ctx, cancel := context.WithTimeout(t.Context(), tlsTestTime)
					defer cancel()
					l, err := net.Listen("tcp", "127.0.0.1:0")
					if err != nil {
						t.Fatal(err)
					}
					defer l.Close()
					l.(*net.TCPListener).SetDeadline(time.Now().Add(tlsTestTime))
					done := make(chan error, 1)
					go func() {
						conn, err := l.Accept()
						if err == nil {
							conn.SetDeadline(time.Now().Add(tlsTestTime))
							c := tls.Server(conn, cfg)
							if err = c.Handshake(); err == nil {
								st = c.ConnectionState()
								c.Write([]byte("220 ready\r\n"))
							}
							closeTLS(c)
						}
						done <- err
					}()
					args := append([]string{"s_client", "-ign_eof", v, "-connect", l.Addr().String(), "-CAfile", k.cert, "-verify_return_error", "-verify_hostname", "localhost"}, more...)
					out, cerr := exec.CommandContext(ctx, program, args...).CombinedOutput()
					if err := <-done; err != nil || cerr != nil {
						t.Fatalf("server %v, openssl %v: %s", err, cerr, out)
					}
					return st, out
				}
				cfg, s := k.control(tlsHere)
				defer k.end(s)
				if _, out := run(cfg, "-sess_out", ticket, "-alpn", "ftp"); !bytes.Contains(out, []byte("Verify return code: 0 (ok)")) || !bytes.Contains(out, []byte("220 ready")) {
					t.Errorf("not verified: %s", out)
				}
				k.login(s, "ann")
				st, _ := run(k.data(s, false), "-sess_in", ticket)
				if resumed, err := k.checkData(s, st); !resumed || err != nil {
					t.Errorf("openssl's data connection resumed %v, %v; want true", resumed, err)
				}
			})
		}
	}
}
