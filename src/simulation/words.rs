//! Names, numbers and sentences.

use rand::Rng;
use rand::rngs::StdRng;

const FIRST_NAMES: [&str; 40] = [
    "Amara", "Ben", "Carmen", "Dana", "Elif", "Farid", "Grace", "Hugo", "Imani", "Jonas", "Keiko", "Luis", "Maya", "Nadia", "Omar",
    "Priya", "Quinn", "Rosa", "Samir", "Tara", "Ugo", "Vera", "Wei", "Ximena", "Yusuf", "Zoe", "Anneke", "Bruno", "Chloe", "Deshawn",
    "Esther", "Fatima", "Gustavo", "Hana", "Ivan", "Julia", "Kofi", "Leila", "Mateo", "Noor",
];
const LAST_NAMES: [&str; 40] = [
    "Abara",
    "Bennett",
    "Castillo",
    "Duarte",
    "Eriksen",
    "Farouk",
    "Greene",
    "Haddad",
    "Ibarra",
    "Jensen",
    "Kowalski",
    "Lindqvist",
    "Mbeki",
    "Novak",
    "Okafor",
    "Patel",
    "Quispe",
    "Romero",
    "Sato",
    "Tanaka",
    "Ueda",
    "Varga",
    "Whitfield",
    "Xu",
    "Yilmaz",
    "Zhang",
    "Alvarez",
    "Brandt",
    "Chowdhury",
    "Delgado",
    "Engel",
    "Ferrara",
    "Gupta",
    "Hartmann",
    "Ito",
    "Jovanovic",
    "Kim",
    "Larsen",
    "Moreau",
    "Nguyen",
];
const BUSINESS_FIRST: [&str; 20] = [
    "Harbor",
    "Juniper",
    "Cedar",
    "Bluebird",
    "Granite",
    "Saffron",
    "Meridian",
    "Copper",
    "Willow",
    "Northside",
    "Lakeview",
    "Redwood",
    "Tidal",
    "Maple",
    "Ironbridge",
    "Sunrise",
    "Foxglove",
    "Summit",
    "Olive",
    "Prairie",
];
const BUSINESS_LAST: [&str; 16] = [
    "Bakery LLC",
    "Logistics Inc",
    "Dental Group",
    "Roofing Co",
    "Coffee Roasters",
    "Auto Repair",
    "Landscaping LLC",
    "Catering",
    "Veterinary Clinic",
    "Plumbing & Heating",
    "Fitness Studio",
    "Print Works",
    "Freight LLC",
    "Flooring",
    "Electric Co",
    "Market",
];
/// What the platform infers, a name for the file, its MIME type, and about how many bytes.
pub(super) const DOCUMENTS: [(&str, &str, &str, u64); 10] = [
    ("Bank Statement", "bank statement {month} {year}.pdf", "application/pdf", 420_000),
    ("Bank Statement", "{business} checking {month}.pdf", "application/pdf", 380_000),
    ("Driver License", "drivers_license_front.jpg", "image/jpeg", 2_300_000),
    ("Tax Return", "{year} Form 1120-S.pdf", "application/pdf", 1_900_000),
    ("Voided Check", "voided check.png", "image/png", 640_000),
    ("Profit and Loss", "P&L YTD {year}.xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", 58_000),
    ("Lease Agreement", "lease signed.pdf", "application/pdf", 1_100_000),
    ("Accounts Receivable", "AR aging {month}.csv", "text/csv", 24_000),
    ("Business License", "IMG_{number}.heic", "image/heic", 3_100_000),
    ("Articles of Organization", "articles of organization.pdf", "application/pdf", 770_000),
];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
pub(super) const INBOUND: [&str; 12] = [
    "Asks how long the decision takes",
    "Sends the documents that were asked for",
    "Asks whether a personal guarantee is needed",
    "Confirms the amount of the loan",
    "Wants to talk to a person",
    "Says the bank statements will come tomorrow",
    "Asks about the rate",
    "Corrects the address of the business",
    "Thanks for the quick answer",
    "Asks what the funds may be used for",
    "Confirms the call on Thursday",
    "Asks which months of statements are needed",
];
pub(super) const OUTBOUND: [&str; 9] = [
    "Explained the next steps",
    "Asked for the last three bank statements",
    "Confirmed that the documents arrived",
    "Answered a question about fees",
    "Asked for a clearer picture of the license",
    "Sent the link to the portal",
    "Offered three times for a call",
    "Explained why a voided check is needed",
    "Confirmed the amount and the term",
];
pub(super) const FOLLOW_UPS: [&str; 5] = [
    "Reminder: two documents are missing",
    "Followed up after three days without an answer",
    "Asked whether there are open questions",
    "Reminder: the portal link ends tomorrow",
    "Checked in about the tax return",
];
/// Tools: their id, name, what they do, and how they fail.
pub(super) const TOOLS: [(&str, &str, &str, &str); 5] = [
    ("tool-credit", "credit_report", "Pulled the business credit report", "The credit bureau did not answer within 30 s"),
    ("tool-secretary", "secretary_of_state_lookup", "Looked the company up at the Secretary of State", "The registry answered 503"),
    ("tool-bank", "bank_verification", "Verified the bank account", "The bank asks for another sign-in"),
    ("tool-crm", "crm_sync", "Synchronized the lead with the CRM", "The CRM's rate limit is exceeded"),
    ("tool-quote", "quote_calculator", "Calculated three offers", "The term is not among those that are offered"),
];
pub(super) const CHECKLIST: [(&str, &str); 8] = [
    ("LEGAL_BUSINESS_NAME", "text"),
    ("BUSINESS_ADDRESS", "address"),
    ("ANNUAL_REVENUE", "number"),
    ("TIME_IN_BUSINESS", "number"),
    ("REQUESTED_AMOUNT", "number"),
    ("BANK_STATEMENTS", "files"),
    ("DRIVER_LICENSE", "files"),
    ("VOIDED_CHECK", "files"),
];
pub(super) const SOURCES: [&str; 6] = ["inbound-email", "inbound-sms", "inbound-whatsapp", "portal", "api", "salesforce"];

/// One of several.
pub(super) fn one<T: Copy>(random: &mut StdRng, of: &[T]) -> T {
    of[random.random_range(0..of.len())]
}

/// A UUID.
pub(super) fn id(random: &mut StdRng) -> String {
    uuid::Builder::from_random_bytes(random.random()).into_uuid().to_string()
}

/// Somebody who applies. Nobody: addresses of example.com, numbers that are set aside for fiction.
#[derive(Clone, Debug)]
pub(super) struct Person {
    pub(super) first_name: &'static str,
    pub(super) last_name: &'static str,
    pub(super) email: String,
    pub(super) phone: String,
    pub(super) business: String,
}

pub(super) fn person(random: &mut StdRng) -> Person {
    let (first_name, last_name) = (one(random, &FIRST_NAMES), one(random, &LAST_NAMES));
    Person {
        first_name,
        last_name,
        email: format!("{}.{}@example.com", first_name.to_lowercase(), last_name.to_lowercase()),
        phone: format!("+1 {} 555 01{:02}", random.random_range(201..990), random.random_range(0..100)),
        business: format!("{} {}", one(random, &BUSINESS_FIRST), one(random, &BUSINESS_LAST)),
    }
}

/// The name of a file.
pub(super) fn filename(random: &mut StdRng, pattern: &str, business: &str, year: i32) -> String {
    let business = business.split(' ').next().unwrap_or_default();
    pattern
        .replace("{month}", one(random, &MONTHS))
        .replace("{year}", &year.to_string())
        .replace("{business}", business)
        .replace("{number}", &random.random_range(1000..9999).to_string())
}
