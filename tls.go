package main

// tls.go owns the keys and certificates: the one that is made on first start,
// the files that are watched, the tickets that tie data connections to their
// control connection, and how a TLS stream ended. It is a file of its own
// because keys are their own trust room: whoever reviews what may touch a
// private key reads this page alone. It must not know verbs, reply codes,
// users' files or what a transfer does with the bytes.

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
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	tlsCheckEvery   = time.Second // how often changed files are looked for, at most; a stat costs a microsecond, a handshake a hundred
	tlsGenerateFor  = 10          // years that a made certificate holds: nobody renews it, clients pin it
	tlsMaxAddresses = 32          // addresses named in a made certificate; a host of containers has hundreds
	tlsSerialBits   = 127         // RFC 5280 section 4.1.2.2: at most 20 octets and positive

	// ALPN names. "ftp" is registered with IANA; FileZilla has two of its own.
	tlsProtoFTP       = "ftp"
	tlsProtoFrames    = "berth/1"
	tlsProtoData      = "ftp-data"
	tlsProtoFileZilla = "x-filezilla-ftp"

	// tlsTicketMark begins the entry that ours is among a ticket's extras;
	// crypto/tls asks for entries that can be told apart.
	tlsTicketMark = "berth session 1 "
)

// tlsEpoch is the earliest time a box believes it is: one without a battery
// clock makes its certificate in 1970, which would end before it ever began.
// It is also the start of validity, so that clients whose clock is behind the
// server's still take it.
func tlsEpoch() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

// errTLSNotResumed refuses a data connection under session_reuse = "on".
var errTLSNotResumed = errors.New(`data connection does not resume the TLS session of its control connection; let the client reuse sessions, or set session_reuse = "off" in [tls]`)

// tlsDirectory is where the certificate that berth makes is, in the state directory.
const tlsDirectory = "tls"

// A tlsKeeper holds the server's certificate and the secrets tickets are
// sealed with. It is safe for use by any number of goroutines.
//
// Tickets live and die with the keeper: it never writes their keys down.
type tlsKeeper struct {
	cfg     tlsConfig
	cert    string // file names; generated ones if [tls] names none
	key     string
	log     *slog.Logger
	base    *tls.Config // template of all others; its ticket keys, which crypto/tls changes daily and keeps for a week, seal every ticket
	onReuse func(result string)

	born    time.Time
	checked atomic.Int64 // time since born of the last look at the files
	now     atomic.Pointer[tlsMaterial]

	loading mutex       // held while files are read; never with mu
	refused [3]tlsStamp // the files last complained of; by loading

	mu   sync.RWMutex
	live map[tlsID]*tlsSession // control sessions that go on
}

// tlsMaterial is what the files held at one moment. It never changes.
type tlsMaterial struct {
	stamps   [3]tlsStamp // certificate, key, client_ca
	certs    []tls.Certificate
	cas      *x509.CertPool // nil without client_ca
	print    string
	notAfter time.Time
}

// A tlsStamp changes whenever the file's content can have.
type tlsStamp struct {
	ino            uint64
	size           int64
	mtime, changed syscall.Timespec
}

// tlsID names one control session inside tickets. It is random so that
// neither a restart nor another keeper can bring one back.
type tlsID [16]byte

// A tlsSession is what ties data connections to the one control connection
// that did TLS. Its zero pointer stands for a session without TLS.
type tlsSession struct {
	id   tlsID
	addr netip.Addr

	user string // by tlsKeeper.mu

	certified atomic.Bool // the client showed a certificate on the control connection
	receives  atomic.Bool // the latest data connection is an upload
	warned    atomic.Bool // of data connections that do not resume it
	foreign   atomic.Bool // and came with another session's ticket
}

// newTLSKeeper loads the certificate and key that cfg names. If it names
// none, it makes a self-signed one in stateDir/tls, or finds the one made
// earlier there. It logs the certificate's fingerprint, once. name becomes
// the subject of a certificate that is made here.
func newTLSKeeper(cfg tlsConfig, stateDir, name string, log *slog.Logger) (*tlsKeeper, error) {
	k := &tlsKeeper{cfg: cfg, cert: cfg.Certificate, key: cfg.Key, log: log, born: time.Now(), live: map[tlsID]*tlsSession{}}
	switch cfg.SessionReuse {
	case "", "off", "warn", "on":
	default:
		return nil, errorf(`tls: session_reuse = %q; use "off", "warn" or "on"`, cfg.SessionReuse)
	}
	if (k.cert == "") != (k.key == "") {
		return nil, newError("tls: certificate and key belong together; set both, or neither to have a certificate made")
	}
	if k.cert == "" {
		dir := joinPath(stateDir, tlsDirectory)
		k.cert, k.key = joinPath(dir, "cert.pem"), joinPath(dir, "key.pem")
		if err := generateCertificate(dir, name); err != nil {
			return nil, errorf("tls: make a certificate in %s: %w", dir, err)
		}
	}
	k.base = &tls.Config{
		MinVersion: tls.VersionTLS12, // RFC 8996
		// The rest is crypto/tls's own choice, which is right here: AES-128-GCM
		// first where the processor has AES, else ChaCha20; X25519, P-256 and
		// P-384 for everybody, and their ML-KEM hybrids for clients that offer
		// one, since what is recorded today may be read in twenty years.
	}
	if cfg.SessionReuse == "on" {
		// In TLS 1.2 the ticket is part of the handshake, so a client that only
		// writes has read it before its first byte, and uploads may resume like
		// everything else. In TLS 1.3 it comes behind the handshake; see data.
		// A ticket of one version resumes in no other, hence both connections.
		k.base.MaxVersion = tls.VersionTLS12
	}
	// Sealing once makes the ticket keys, which every clone then shares;
	// otherwise each clone would make its own, unused, at its first handshake.
	if _, err := k.base.EncryptTicket(tls.ConnectionState{}, &tls.SessionState{}); err != nil {
		return nil, errorf("tls: ticket keys: %w", err)
	}
	m, err := k.load()
	if err != nil {
		return nil, err
	}
	k.now.Store(m)
	k.announce("certificate", m)
	return k, nil
}

// fingerprint is "sha256:" and the lower-case hex digest of the certificate's
// DER, which is what clients pin and `hello` tells.
func (k *tlsKeeper) fingerprint() string { return k.current().print }

// notAfter is the end of the certificate's validity.
func (k *tlsKeeper) notAfter() time.Time { return k.current().notAfter }

// reload reads the files again at once. Where that fails the old certificate
// stays in use and the error says which file is wrong.
func (k *tlsKeeper) reload() error {
	k.loading.Lock()
	defer k.loading.Unlock()
	return k.swap()
}

// swap loads and takes the files; loading is held.
func (k *tlsKeeper) swap() error {
	m, err := k.load()
	if err != nil {
		return err
	}
	old := k.now.Swap(m)
	if old.print != m.print {
		k.announce("certificate changed", m)
	}
	return nil
}

// current is the material in use, after a look at the files if the last one
// is a second old. A certificate and a key cannot be replaced in one step, so
// a pair that does not fit is tried again at the next look; it is complained
// of once, not once a second.
func (k *tlsKeeper) current() *tlsMaterial {
	m := k.now.Load()
	at, last := int64(time.Since(k.born)), k.checked.Load()
	if at-last < int64(tlsCheckEvery) || !k.checked.CompareAndSwap(last, at) {
		return m
	}
	stamps, err := k.stamps()
	if err == nil && stamps == m.stamps {
		return m
	}
	if !k.loading.TryLock() {
		return m
	}
	defer k.loading.Unlock()
	if err == nil {
		err = k.swap()
	}
	if err != nil {
		if stamps != k.refused {
			k.refused = stamps
			k.log.Warn("certificate not changed", "error", err)
		}
		return m
	}
	k.refused = [3]tlsStamp{}
	return k.now.Load()
}

func (k *tlsKeeper) announce(what string, m *tlsMaterial) {
	k.log.Info(what, "fingerprint", m.print, "not_after", m.notAfter, "file", k.cert)
	leaf := m.certs[0].Leaf
	switch now := time.Now(); {
	case now.After(leaf.NotAfter):
		k.log.Warn("certificate expired", "not_after", m.notAfter, "file", k.cert)
	case now.Before(leaf.NotBefore):
		k.log.Warn("certificate not valid yet", "not_before", leaf.NotBefore, "file", k.cert)
	}
	if st, err := os.Stat(k.key); err == nil && st.Mode().Perm()&0o007 != 0 {
		k.log.Warn("private key open to everyone", "file", k.key, "mode", st.Mode().Perm().String())
	}
}

// load reads the files. They are looked at before they are read, so that a
// change in between is found by the next look.
func (k *tlsKeeper) load() (*tlsMaterial, error) {
	stamps, err := k.stamps()
	if err != nil {
		return nil, err
	}
	m := &tlsMaterial{stamps: stamps}
	pair, err := tls.LoadX509KeyPair(k.cert, k.key)
	if err != nil {
		return nil, errorf("tls: certificate %s with key %s: %w", k.cert, k.key, err)
	}
	if pair.Leaf == nil { // only with GODEBUG=x509keypairleaf=0
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, errorf("tls: certificate %s: %w", k.cert, err)
		}
	}
	if k.cfg.ClientCA != "" {
		text, err := os.ReadFile(k.cfg.ClientCA)
		if err != nil {
			return nil, errorf("tls: client_ca: %w", err)
		}
		m.cas = x509.NewCertPool()
		if !m.cas.AppendCertsFromPEM(text) {
			return nil, errorf("tls: client_ca %s: no certificate in it; it must hold PEM blocks", k.cfg.ClientCA)
		}
	}
	m.certs = []tls.Certificate{pair}
	m.print = fingerprintOf(pair.Certificate[0])
	m.notAfter = pair.Leaf.NotAfter
	return m, nil
}

func (k *tlsKeeper) stamps() (s [3]tlsStamp, err error) {
	for i, name := range []string{k.cert, k.key, k.cfg.ClientCA} {
		if name == "" {
			continue
		}
		var st syscall.Stat_t
		if err := syscall.Stat(name, &st); err != nil {
			return s, errorf("tls: %w", &fs.PathError{Op: "stat", Path: name, Err: err})
		}
		s[i] = tlsStamp{ino: uint64(st.Ino), size: int64(st.Size), mtime: st.Mtim, changed: st.Ctim}
	}
	return s, nil
}

// fingerprintOf writes a certificate's digest as users' files hold it.
func fingerprintOf(der []byte) string {
	sum := sha256.Sum256(der)
	return "sha256:" + hexText(sum[:])
}

// clientFingerprint is the digest of the certificate that the client holds
// the key of, as the users' `certificates` are written, or "" if it showed
// none. The handshake has proved possession: crypto/tls keeps no certificate
// whose CertificateVerify (RFC 8446 section 4.4.3) did not hold, and a ticket
// carries it on only to who knows that handshake's secret.
func clientFingerprint(st tls.ConnectionState) string {
	if len(st.PeerCertificates) == 0 {
		return ""
	}
	return fingerprintOf(st.PeerCertificates[0].Raw)
}

// --- sessions ---

// control returns what a control connection's handshake from addr needs, and
// the session that its data connections will belong to. The caller ends the
// session, also when the handshake fails.
func (k *tlsKeeper) control(addr netip.Addr) (*tls.Config, *tlsSession) {
	s := &tlsSession{addr: addr.Unmap()}
	rand.Read(s.id[:]) // never fails
	k.mu.Lock()
	k.live[s.id] = s
	k.mu.Unlock()

	cfg := k.config(s)
	// Which of them is chosen changes nothing: the greeting comes, and FRAM turns to
	// frames. It only says that this is the protocol that the client came for.
	cfg.NextProtos = []string{tlsProtoFrames, tlsProtoFTP}
	// A client that offers only other protocols was sent here by somebody in
	// the middle who wants HTTP to be read as FTP (ALPACA, CVE-2021-3618):
	// crypto/tls refuses it. FileZilla's private name is FTP all the same.
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if !inList(hello.SupportedProtos, tlsProtoFileZilla) || inList(hello.SupportedProtos, tlsProtoFTP) {
			return nil, nil
		}
		plain := cfg.Clone()
		plain.NextProtos = nil
		return plain, nil
	}
	// RFC 4217 section 9: any certificate may be shown; whose it is, the users'
	// files say. With client_ca it must also be signed by that authority.
	k.askCertificate(cfg)
	cfg.VerifyConnection = func(st tls.ConnectionState) error {
		s.certified.Store(len(st.PeerCertificates) > 0)
		return nil
	}
	cfg.UnwrapSession = k.base.DecryptTicket
	return cfg, s
}

// data returns what one data connection's handshake needs. receives tells
// that the client will write: an upload. It is made for one connection, not
// kept for the next. A nil s never resumes.
//
// A TLS 1.3 server sends its ticket behind the handshake. A client that only
// writes never reads it, and when it closes, its kernel finds unread bytes,
// sends RST instead of FIN and drops what was still to be sent: the end of the
// upload. So an upload over TLS 1.3 gets no ticket, and since crypto/tls has
// one switch for both, cannot resume either. In TLS 1.2 the ticket is read
// within the handshake and does no harm.
func (k *tlsKeeper) data(s *tlsSession, receives bool) *tls.Config {
	if s == nil {
		cfg := k.config(nil)
		cfg.NextProtos = []string{tlsProtoData, tlsProtoFTP}
		cfg.DynamicRecordSizingDisabled = true
		cfg.SessionTicketsDisabled = true
		return cfg
	}
	s.receives.Store(receives)
	s.foreign.Store(false)
	cfg := k.config(s)
	cfg.NextProtos = []string{tlsProtoData, tlsProtoFTP}
	cfg.DynamicRecordSizingDisabled = true // full records from the first: nobody waits for the first byte of a file
	cfg.UnwrapSession = func(ticket []byte, st tls.ConnectionState) (*tls.SessionState, error) {
		state, err := k.base.DecryptTicket(ticket, st)
		if state == nil || err != nil {
			return nil, err
		}
		if !k.sameLogin(s, state) {
			s.foreign.Store(true)
			return nil, nil // a full handshake; checkData says whether that is enough
		}
		return state, nil
	}
	if s.certified.Load() {
		// crypto/tls resumes a session that holds a client certificate only where
		// one would be asked for. Nobody else is asked on a data connection.
		k.askCertificate(cfg)
	}
	if !receives || k.base.MaxVersion == tls.VersionTLS12 {
		return cfg
	}
	cfg.SessionTicketsDisabled = true
	cfg.ClientAuth = tls.NoClientCert
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
			return nil, nil
		}
		old := cfg.Clone()
		old.GetConfigForClient = nil
		old.SessionTicketsDisabled = false
		if s.certified.Load() {
			k.askCertificate(old)
		}
		return old, nil
	}
	return cfg
}

// pages returns what the handshake of one connection to the http listener needs.
// Nothing is resumed there: its connections are kept, and no ticket of theirs may
// open anything else.
func (k *tlsKeeper) pages() *tls.Config {
	cfg := k.config(nil)
	cfg.MaxVersion = 0                                // session_reuse bounds it, for tickets
	cfg.NextProtos = []string{"http/1.1", "http/1.0"} // who offers others alone is refused, as in control
	cfg.SessionTicketsDisabled = true
	return cfg
}

// config is a fresh copy of the base with the certificate of the moment and,
// for a session, its id in every ticket.
func (k *tlsKeeper) config(s *tlsSession) *tls.Config {
	m := k.current()
	cfg := k.base.Clone()
	cfg.Certificates = m.certs
	cfg.ClientCAs = m.cas
	if s != nil {
		cfg.WrapSession = func(st tls.ConnectionState, state *tls.SessionState) ([]byte, error) {
			state.Extra = append(slices.DeleteFunc(state.Extra, isTicketMark), append([]byte(tlsTicketMark), s.id[:]...))
			return k.base.EncryptTicket(st, state)
		}
	}
	return cfg
}

func (k *tlsKeeper) askCertificate(cfg *tls.Config) {
	cfg.ClientAuth = tls.RequestClientCert
	if cfg.ClientCAs != nil {
		cfg.ClientAuth = tls.VerifyClientCertIfGiven
	}
}

func isTicketMark(extra []byte) bool { return bytes.HasPrefix(extra, []byte(tlsTicketMark)) }

// sameLogin tells whether the ticket was given to s or to another control
// session that still goes on with the same user and address. Clients with one
// ticket cache for a pool of sessions bring each other's tickets.
func (k *tlsKeeper) sameLogin(s *tlsSession, state *tls.SessionState) bool {
	var id tlsID
	i := slices.IndexFunc(state.Extra, isTicketMark)
	if i < 0 || len(state.Extra[i]) != len(tlsTicketMark)+len(id) {
		return false
	}
	copy(id[:], state.Extra[i][len(tlsTicketMark):])
	k.mu.RLock()
	defer k.mu.RUnlock()
	other := k.live[id]
	if other == nil || k.live[s.id] != s {
		return false
	}
	return other == s || other.user == s.user && s.user != "" && other.addr == s.addr
}

// login tells who is logged in on s from now on; "" is nobody.
func (k *tlsKeeper) login(s *tlsSession, user string) {
	if s == nil {
		return
	}
	k.mu.Lock()
	s.user = user
	k.mu.Unlock()
}

// end forgets s: its tickets open no data connection any more. They still
// shorten the same client's next control handshake.
func (k *tlsKeeper) end(s *tlsSession) {
	if s == nil {
		return
	}
	k.mu.Lock()
	delete(k.live, s.id)
	k.mu.Unlock()
}

// checkData tells whether the data connection whose handshake ended in st
// resumed a control session that goes on, of the same user and address. Under
// session_reuse = "on" it is errTLSNotResumed if not; "warn" logs who would fail.
// All are counted but uploads over TLS 1.3, which cannot resume (see data) and are
// not held against the client.
func (k *tlsKeeper) checkData(s *tlsSession, st tls.ConnectionState) (resumed bool, err error) {
	// UnwrapSession took no other ticket, so to have resumed is all of it.
	resumed = st.DidResume
	if s == nil {
		return resumed, nil
	}
	result := "fresh"
	switch {
	case resumed:
		result = "resumed"
	case s.receives.Load() && st.Version >= tls.VersionTLS13:
		return false, nil
	case s.foreign.Load():
		result = "foreign"
	}
	if k.onReuse != nil {
		k.onReuse(result)
	}
	level := slog.LevelDebug
	if !resumed && k.cfg.SessionReuse == "warn" && !s.warned.Swap(true) { // of a client that lists each second, once will do
		level = slog.LevelWarn
	}
	k.mu.RLock()
	user := s.user
	k.mu.RUnlock()
	k.log.Log(context.Background(), level, "TLS data connection", "user", user, "addr", s.addr, "result", result, "version", tls.VersionName(st.Version))
	if !resumed && k.cfg.SessionReuse == "on" {
		return false, errTLSNotResumed
	}
	return resumed, nil
}

// --- the end of a stream ---

// An eofConn goes between a tls.Conn and its network connection and notices
// whether the latter ended. crypto/tls returns the same io.EOF for a stream
// that was closed with close_notify and for one that just stopped between two
// records (RFC 8446 section 6.1: a truncation attack looks like that). With
// the alert it stops before it reads the end below.
//
// No byte counter nor limiter belongs here; it costs every record.
type eofConn struct {
	net.Conn
	ended atomic.Bool
}

func (c *eofConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == io.EOF {
		c.ended.Store(true)
	}
	return n, err
}

// sawEOF tells that the network stream ended below TLS: an io.EOF from the
// tls.Conn above then means that no close_notify came.
func (c *eofConn) sawEOF() bool { return c.ended.Load() }

// closeTLS closes c with close_notify, which crypto/tls sends if the handshake
// was done and no write is under way, waiting at most five seconds for a peer
// that reads nothing. After an upload the peer has often gone by then; that is
// no error, since all it sent was read.
func closeTLS(c *tls.Conn) error {
	err := c.Close()
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}

// --- the certificate made on first start ---

// generateCertificate makes dir with a key and a self-signed certificate,
// both or neither: they are written beside it and renamed as one. A dir that
// is there already is left as it is, whatever it holds, since a certificate
// that changes by itself looks to every client that pinned it like an attack.
func generateCertificate(dir, name string) error {
	entries, err := namesIn(dir)
	if err == nil && len(entries) > 0 {
		for _, f := range []string{"cert.pem", "key.pem"} {
			if _, err := os.Stat(joinPath(dir, f)); err != nil {
				return errorf("%w; put it back, or remove the directory to have a new pair made", err)
			}
		}
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	cert, key, err := selfSigned(name)
	if err != nil {
		return err
	}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o750); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(parent, ".tls-") // mode 0700
	if err != nil {
		return err
	}
	defer func() {
		for _, name := range []string{"key.pem", "cert.pem", ""} { // not os.RemoveAll, which is 7 KB of the binary
			os.Remove(joinPath(tmp, name))
		}
	}()
	if err := tlsWriteSynced(joinPath(tmp, "key.pem"), key, 0o600); err != nil {
		return err
	}
	if err := tlsWriteSynced(joinPath(tmp, "cert.pem"), cert, 0o644); err != nil {
		return err
	}
	if err := tlsSyncDirectory(tmp); err != nil {
		return err
	}
	// rename(2) replaces an empty directory only, so of two daemons that start
	// together the second one fails here and uses the first one's pair.
	if err := os.Rename(tmp, dir); err != nil {
		if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST) {
			return nil
		}
		return err
	}
	return tlsSyncDirectory(parent)
}

// selfSigned makes an ECDSA P-256 pair, the cheapest that every client takes,
// as PEM. It names every way in which the machine is reached from here.
func selfSigned(name string) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), tlsSerialBits))
	if err != nil {
		return nil, nil, err
	}
	start := tlsEpoch()
	from := time.Now()
	if from.Before(start) {
		from = start
	}
	host, _ := os.Hostname()
	t := &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(1)), // never zero
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             start,
		NotAfter:              from.AddDate(tlsGenerateFor, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, // and not an authority: trusting it trusts this server alone
		DNSNames:              certificateNames(host, name),
		IPAddresses:           machineAddresses(),
	}
	if t.Subject.CommonName == "" {
		t.Subject.CommonName = "berth"
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}

// certificateNames keeps of the names those that can be a host name; a
// certificate with any other fails to parse at the client.
func certificateNames(names ...string) []string {
	out := []string{"localhost"}
	for _, n := range names {
		n = strings.ToLower(n)
		bad := strings.Trim(n, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || strings.Trim(n, "-.") != n || hasText(n, "..")
		if n == "" || len(n) > 253 || bad || inList(out, n) { // RFC 1035 section 2.3.4
			continue
		}
		out = append(out, n)
	}
	return out
}

// machineAddresses lists the loopback addresses and what the interfaces have
// now. A machine that moves is known by its fingerprint.
func machineAddresses() []net.IP {
	out := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return out // a sandbox without netlink; the loopback names will do
	}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if ok && len(out) < tlsMaxAddresses && (n.IP.IsGlobalUnicast() || n.IP.IsLinkLocalUnicast()) {
			out = append(out, n.IP)
		}
	}
	return out
}

func tlsWriteSynced(name string, text []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil { // whatever the umask left of it
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

func tlsSyncDirectory(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
